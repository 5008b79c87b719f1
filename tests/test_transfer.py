"""The one-liner, and what a plan that is carried out makes of each parameter."""

import copy
import dataclasses
from pathlib import Path

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from flax import nnx
from flax.core import FrozenDict, freeze

import tlv_jax
from tlv_jax import Method, methods, rules

# The trees here are tiny, unlike, and of no known architecture.
pytestmark = [
    pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning"),
    pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning"),
]

ALL = ("conv", "dense", "norm", "bias")
EXACT = rules.Variance(keep="max", remove="min", shuffle=False)


def test_the_one_liner_keeps_structure_shapes_and_dtypes():
    source, target = trees.source_tree(), trees.target_tree()
    before = jax.tree.map(np.copy, target)
    new = tlv_jax.transfer(source, target)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, target)
    chex.assert_trees_all_equal(target, before)
    chex.assert_tree_all_finite(new)
    assert not np.array_equal(new["conv1"]["kernel"], target["conv1"]["kernel"])
    assert new["bn1"]["scale"] is target["bn1"]["scale"]
    assert new["fc"]["kernel"] is target["fc"]["kernel"]


def test_heads_may_be_drawn_from_statistics(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, Method(head="statistics"))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    assert not np.array_equal(new["fc"]["kernel"], target["fc"]["kernel"])
    assert not new["fc"]["bias"].any()


def test_each_kernel_is_what_the_rule_makes_of_its_pair(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, Method(rule=EXACT))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    for source_path, path in plan.pairs:
        expected = EXACT(key, source[source_path]["kernel"], target[path]["kernel"])
        np.testing.assert_array_equal(new[path]["kernel"], expected)


def test_vectors_are_clipped(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, Method(kinds=ALL))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    np.testing.assert_array_equal(new["bn1"]["scale"], source["bn1"]["scale"][1:7])
    np.testing.assert_array_equal(new["bn1"]["bias"], source["bn1"]["bias"][1:7])
    np.testing.assert_array_equal(new["conv1"]["bias"], source["conv1"]["bias"][1:7])
    np.testing.assert_array_equal(new["fc"]["bias"], source["fc"]["bias"][9:11])


def test_running_statistics_follow_their_norm(key):
    def variables(seed, channels):
        return {
            "params": {"bn": {"scale": trees.normal(seed, channels), "bias": np.zeros(channels)}},
            "batch_stats": {"bn": {"mean": trees.normal(1, channels), "var": np.ones(channels)}},
        }

    source, target = variables(0, 8), variables(10, 4)
    plan = tlv_jax.plan_transfer(source, target, Method(kinds=("norm",)))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    expected = source["batch_stats"]["bn"]["mean"][2:6]
    np.testing.assert_array_equal(new["batch_stats"]["bn"]["mean"], expected)


def test_a_transfer_into_itself_is_the_identity_without_shuffle(key):
    source = trees.source_tree()
    plan = tlv_jax.plan_transfer(source, source, Method(rule=EXACT, kinds=ALL))
    chex.assert_trees_all_equal(tlv_jax.apply_transfer(plan, key, source, source), source)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_target_keeps_its_dtype(key, dtype):
    target = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees.target_tree())
    new = tlv_jax.transfer(trees.source_tree(), target, key=key)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, target)
    chex.assert_tree_all_finite(new)


def test_a_frozen_dict_stays_one(key):
    target = freeze(trees.target_tree())
    assert isinstance(tlv_jax.transfer(trees.source_tree(), target, key=key), FrozenDict)


def test_partitioning_metadata_stays(key):
    target = trees.target_tree()
    target["conv1"]["kernel"] = nn.Partitioned(target["conv1"]["kernel"], (None,) * 3 + ("data",))
    new = tlv_jax.transfer(trees.source_tree(), target, key=key)
    assert new["conv1"]["kernel"].names == (None, None, None, "data")


def test_equinox_modules_are_transferred_in_their_own_layout(key):
    keys = jax.random.split(key, 2)
    source = eqx.nn.Sequential([eqx.nn.Conv2d(3, 8, 3, key=keys[0]), eqx.nn.Lambda(jax.nn.relu)])
    target = eqx.nn.Sequential([eqx.nn.Conv2d(3, 4, 3, key=keys[1]), eqx.nn.Lambda(jax.nn.relu)])
    plan = tlv_jax.plan_transfer(source, target, Method(rule=EXACT, kinds=("conv", "bias")))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    weight = np.asarray(source[0].weight)
    kept = np.argsort(weight.var(axis=(1, 2, 3)))[4:]
    np.testing.assert_array_equal(new[0].weight, weight[kept])
    assert new[0].bias.shape == (4, 1, 1)
    assert new(jnp.ones((3, 8, 8))).shape == (4, 6, 6)


def test_nnx_states_are_transferred(key):
    def state(features):
        return nnx.state(nnx.Conv(3, features, (3, 3), rngs=nnx.Rngs(0)), nnx.Param)

    source, target = state(8), state(4)
    new = tlv_jax.transfer(source, target, key=key)
    assert isinstance(new, nnx.State)
    assert jax.tree.structure(new) == jax.tree.structure(target)
    assert not np.array_equal(jax.tree.leaves(new)[1], jax.tree.leaves(target)[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_sources_that_are_not_finite_are_refused(key, bad, dtype, place):
    source = trees.source_tree()
    source["conv1"]["kernel"][0, 0, 0, :2] = bad
    source = jax.tree.map(lambda leaf: place(leaf.astype(dtype)), source)
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'conv1/kernel' has 2 values"):
        tlv_jax.transfer(source, trees.target_tree(), key=key)


@pytest.mark.parametrize("traced", ["key", "dst"])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_known_sources_are_checked_where_another_argument_is_traced(key, traced, place):
    source = {"conv1": {"kernel": trees.normal(0, 1, 1, 3, 4)}}
    target = {"conv1": {"kernel": trees.normal(1, 1, 1, 3, 4)}}
    plan = tlv_jax.plan_transfer(source, target)
    source["conv1"]["kernel"][..., 0] = np.nan
    arguments = {"key": key, "src": jax.tree.map(place, source), "dst": target}

    def apply(given):
        return tlv_jax.apply_transfer(plan, **{**arguments, traced: given})

    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'conv1/kernel' has 3 values"):
        jax.jit(apply)(arguments[traced])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("rule", [rules.Variance(pool="max"), rules.Clip()], ids=str)
def test_it_does_not_matter_where_the_value_stands(key, rule, bad):
    # Filters are thinned or not, and of kernels that shrink the largest weights count.
    sizes = {"conv1": (5, 5, 3, 8), "conv2": (3, 3, 8, 6), "conv3": (1, 1, 6, 9)}
    source = {path: {"kernel": trees.normal(0, *size)} for path, size in sizes.items()}
    sizes = {"conv1": (3, 3, 3, 6), "conv2": (3, 3, 6, 7), "conv3": (1, 1, 7, 4)}
    target = {path: {"kernel": trees.normal(1, *size)} for path, size in sizes.items()}
    plan = tlv_jax.plan_transfer(source, target, Method(rule=rule))
    for path in sizes:
        for place in (0, -1):
            spoilt = copy.deepcopy(source)
            spoilt[path]["kernel"].flat[place] = bad
            with pytest.raises(tlv_jax.NonFiniteSourceError, match=f"'{path}/kernel' has 1 values"):
                tlv_jax.apply_transfer(plan, key, spoilt, target)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sources_of_a_drawn_head_are_refused_too(key, bad):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, Method(head="statistics"))
    source["fc"]["kernel"][3, 4] = bad
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'fc/kernel' has 1 values"):
        tlv_jax.apply_transfer(plan, key, source, target)
    source["fc"]["kernel"][3, 4] = 1e30  # finite, though its square is not
    tlv_jax.apply_transfer(plan, key, source, target)


def test_the_check_can_be_waived_and_ignores_what_the_plan_does_not_read(key):
    source, target = trees.source_tree(), trees.target_tree()
    source["bn1"]["scale"][0] = np.nan
    chex.assert_tree_all_finite(tlv_jax.transfer(source, target, key=key))
    source["conv1"]["kernel"][:] = np.nan
    plan = tlv_jax.plan_transfer(source, target)
    new = tlv_jax.apply_transfer(plan, key, source, target, check_finite=False)
    assert np.isnan(new["conv1"]["kernel"]).any()


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_a_plan_for_other_trees_is_refused(key, side, change):
    given = {"src": trees.source_tree(), "dst": trees.target_tree()}
    plan = tlv_jax.plan_transfer(*given.values())
    if change == "missing":
        del given[side]["conv1"]
    else:
        given[side]["conv1"]["kernel"] = np.zeros((1, 1, 3, 5), np.float32)
    found = "no such leaf" if change == "missing" else r"\(1, 1, 3, 5\)"
    with pytest.raises(tlv_jax.PlanMismatchError, match=f"{side}.*'conv1/kernel'.*found {found}"):
        tlv_jax.apply_transfer(plan, key, **given)


@pytest.mark.parametrize("rescale", ["he", "source"])
def test_kernels_are_brought_to_a_standard_deviation(key, rescale):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, Method(rescale=rescale, kinds=("conv", "dense")))
    assert f"rescaled: {rescale}" in str(plan)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    for source_path, path in plan.pairs:
        kernel = new[path]["kernel"]
        fan_in = np.prod(kernel.shape[:-1])
        wanted = np.sqrt(2 / fan_in) if rescale == "he" else source[source_path]["kernel"].std()
        assert kernel.std() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("rescale", ["he", "source"])
@pytest.mark.parametrize("weight", [0.0, 0.1, 3.304469])  # rounding leaves the last some spread
def test_kernels_of_equal_weights_are_not_rescaled(key, rescale, weight):
    source = {"conv": {"kernel": np.full((3, 3, 6, 6), weight, np.float32)}}
    plan = tlv_jax.plan_transfer(source, source, Method(rescale=rescale))
    chex.assert_trees_all_equal(tlv_jax.apply_transfer(plan, key, source, source), source)


@pytest.mark.filterwarnings("error")
def test_unlike_networks_and_unknown_orders_are_warned_of():
    source, target = trees.small_network(0, 32, 64), trees.small_network(1, 4, 8)
    with pytest.warns(tlv_jax.SimilarityWarning, match="similarity 0.08"):
        tlv_jax.transfer(source, target)
    tlv_jax.transfer(target, target)
    plan = tlv_jax.plan_transfer(source, target)
    tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    for src, dst, sides in [
        (target.params, target, "src"),
        (target, target.params, "dst"),
        (target.params, target.params, "src and dst"),
    ]:
        with pytest.warns(tlv_jax.UnknownOrderWarning, match=f"{sides}\\b.* bare tree") as caught:
            tlv_jax.transfer(src, dst)
        assert [Path(warning.filename).name for warning in caught] == ["test_transfer.py"]


def test_a_plan_is_applied_to_networks_and_to_their_parameters_alike(key):
    source, target = trees.small_network(0, 8, 16), trees.small_network(1, 8, 12)
    plan = tlv_jax.plan_transfer(source, target)
    expected = tlv_jax.apply_transfer(plan, key, source, target)
    chex.assert_trees_all_equal(tlv_jax.transfer(source, target, key=key), expected)
    for src, dst in ((source.params, target), (source, target.params)):
        chex.assert_trees_all_equal(tlv_jax.apply_transfer(plan, key, src, dst), expected)


def test_the_key_is_zero_unless_given(key):
    source, target = trees.small_network(0, 8, 16), trees.small_network(1, 8, 12)
    first, again, other = (
        tlv_jax.transfer(source, target, key=key, method=methods.TLVFC)
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first["stem"]["kernel"], other["stem"]["kernel"])


@pytest.mark.parametrize("how", ["interleaved", "two_tailed", "random"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn])
def test_it_runs_under_whatever_jax_is_told(key, how, dtype):
    method = dataclasses.replace(methods.TLVFC, rule=rules.Variance(keep=how, remove=how))
    src = {"a": {"kernel": trees.normal(0, 3, 3, 8, 6)}}
    dst = {"a": {"kernel": jnp.asarray(trees.normal(1, 5, 5, 4, 9), dtype)}}
    expected = tlv_jax.transfer(src, dst, key=key, method=method)
    assert expected["a"]["kernel"].dtype == dtype
    with jax.disable_jit():
        plain = tlv_jax.transfer(src, dst, key=key, method=method)
    with jax.transfer_guard("disallow"):
        guarded = tlv_jax.transfer(src, dst, key=key, method=method)
    chex.assert_trees_all_equal(plain, expected)
    chex.assert_trees_all_equal(guarded, expected)


@pytest.mark.parametrize(
    ("bad", "came"),
    [(7, "7"), ("seed", "'seed'"), (jax.random.split(jax.random.key(0)), r"\(2,\).*jax\.vmap")],
    ids=["a number", "text", "several"],
)
def test_a_key_that_is_none_is_refused(bad, came):
    with pytest.raises(tlv_jax.OptionError, match=rf"key: expected one random key.*{came}"):
        tlv_jax.transfer(trees.source_tree(), trees.target_tree(), key=bad)


@pytest.mark.parametrize("side", ["src", "dst"])
def test_shapes_without_values_are_refused_by_their_path(side):
    networks = {"src": trees.source_tree(), "dst": trees.target_tree()}
    networks[side] = jax.eval_shape(lambda: networks[side])
    with pytest.raises(
        tlv_jax.ParameterTreeError, match=f"{side}: leaf 'conv1/kernel'.*plan_transfer"
    ):
        tlv_jax.transfer(**networks)
