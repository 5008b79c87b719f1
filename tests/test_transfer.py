import copy
import functools
import os
import subprocess
import sys
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
from helpers import compilations
from jax.sharding import NamedSharding, PartitionSpec

import tlv_jax
from tlv_jax import fitting, rules, variance_layout

# The trees here are tiny and unlike.
pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

ALL = ("conv", "dense", "norm", "bias")
exact = functools.partial(rules.variance, keep="max", remove="min", shuffle=False)


def identity(key, source, target):
    """A rule that can only serve equal shapes."""
    assert source.shape == target.shape
    return source


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
    plan = tlv_jax.plan_transfer(source, target, head="statistics")
    new = tlv_jax.apply_transfer(plan, key, source, target)
    assert not np.array_equal(new["fc"]["kernel"], target["fc"]["kernel"])
    assert not new["fc"]["bias"].any()


def test_each_kernel_is_what_the_rule_makes_of_its_pair(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, rule=exact)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    for source_path, path in plan.pairs:
        expected = exact(key, source[source_path]["kernel"], target[path]["kernel"])
        np.testing.assert_array_equal(new[path]["kernel"], expected)


def test_vectors_are_clipped(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, kinds=ALL)
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
    plan = tlv_jax.plan_transfer(source, target, kinds=("norm",))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    expected = source["batch_stats"]["bn"]["mean"][2:6]
    np.testing.assert_array_equal(new["batch_stats"]["bn"]["mean"], expected)


def test_a_transfer_into_itself_is_the_identity_without_shuffle(key):
    source = trees.source_tree()
    plan = tlv_jax.plan_transfer(source, source, rule=exact, kinds=ALL)
    chex.assert_trees_all_equal(tlv_jax.apply_transfer(plan, key, source, source), source)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_applying_is_the_same_with_and_without_jit(self):
        source, target = trees.source_tree(), trees.target_tree()
        plan = tlv_jax.plan_transfer(source, target)
        key = jax.random.key(3)
        apply = self.variant(functools.partial(tlv_jax.apply_transfer, plan, check_finite=False))
        chex.assert_trees_all_equal(
            apply(key, source, target), tlv_jax.apply_transfer(plan, key, source, target)
        )


def test_a_second_call_with_other_weights_and_another_key_compiles_nothing(key):
    source, target = trees.source_tree(), trees.target_tree()
    first = tlv_jax.transfer(source, target, key=key)
    others = jax.tree.map(lambda leaf: leaf + 1, source)
    other_key = jax.random.fold_in(key, 1)
    with compilations() as counts:
        second = tlv_jax.transfer(others, target, key=other_key)
    assert not counts
    assert not np.array_equal(first["conv1"]["kernel"], second["conv1"]["kernel"])


def test_the_plan_can_be_a_static_argument_and_traces_once(key):
    source, target = trees.source_tree(), trees.target_tree()
    apply = jax.jit(chex.assert_max_traces(n=1)(tlv_jax.apply_transfer), static_argnums=0)
    for seed in range(3):
        plan = tlv_jax.plan_transfer(source, target)
        apply(plan, jax.random.fold_in(key, seed), source, target)


def test_sixteen_seeds_in_one_call(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, **tlv_jax.presets.tlvfc())
    keys = jax.random.split(key, 16)
    apply = functools.partial(tlv_jax.apply_transfer, plan)
    many = jax.vmap(apply, in_axes=(0, None, None))(keys, source, target)
    assert many["conv1"]["kernel"].shape == (16, 5, 5, 3, 6)
    assert len({np.asarray(kernel).tobytes() for kernel in many["conv1"]["kernel"]}) == 16
    one = apply(keys[5], source, target)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[5], many), one)


def test_a_layer_draws_the_same_whatever_else_is_planned(key):
    source, target = trees.source_tree(), trees.target_tree()
    plans = [tlv_jax.plan_transfer(source, target, kinds=kinds) for kinds in (("conv",), ALL)]
    first, second = (tlv_jax.apply_transfer(plan, key, source, target) for plan in plans)
    np.testing.assert_array_equal(first["conv2"]["kernel"], second["conv2"]["kernel"])


def test_a_rule_is_compiled_once_for_pairs_of_equal_shapes(key):
    calls = []

    def counted(key, source, target):
        calls.append(source.shape)
        return source

    tree = {f"conv{i}": {"kernel": trees.normal(i, 3, 3, 4, 4)} for i in range(7)}
    plan = tlv_jax.plan_transfer(tree, tree, rule=counted)
    calls.clear()
    new = jax.jit(tlv_jax.apply_transfer, static_argnums=0)(plan, key, tree, tree)
    assert calls == [(3, 3, 4, 4)]
    one_by_one = tlv_jax.apply_transfer(plan, key, tree, tree)
    assert calls == [(3, 3, 4, 4)]
    chex.assert_trees_all_equal(one_by_one, tree)
    chex.assert_trees_all_equal(new, tree)


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
    plan = tlv_jax.plan_transfer(source, target, rule=exact, kinds=("conv", "bias"))
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


def test_sharded_parameters_give_the_same_result(key):
    source, target = trees.source_tree(), trees.target_tree()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec(None, None, None, "data"))
    expected = tlv_jax.transfer(source, target, key=key)
    for tree in (source, target):
        tree["conv2"]["kernel"] = jax.device_put(tree["conv2"]["kernel"], rows)
    chex.assert_trees_all_close(tlv_jax.transfer(source, target, key=key), expected, rtol=1e-6)


def test_scanned_blocks_are_transferred_step_by_step(key):
    def stacked(params, images):
        def block(images, kernel):
            dimensions = ("NHWC", "HWIO", "NHWC")
            convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=dimensions)
            return convolve(images, kernel, (1, 1), "SAME"), None

        return jax.lax.scan(block, images, params["blocks"])[0]

    target = {"blocks": trees.normal(0, 3, 3, 3, 4, 4)}
    source = {f"conv{i}": {"kernel": trees.normal(i + 1, 3, 3, 4, 4)} for i in range(3)}
    layers = tlv_jax.trace_layers(stacked, target, jnp.zeros((1, 5, 5, 4)))
    plan = tlv_jax.plan_transfer(source, target, dst_layers=layers, rule=identity)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    expected = np.stack([source[f"conv{i}"]["kernel"] for i in range(3)])
    np.testing.assert_array_equal(new["blocks"], expected)


def test_how_kernels_are_divided_makes_no_difference(key, monkeypatch):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, **tlv_jax.presets.tlvfc())
    expected = tlv_jax.apply_transfer(plan, key, source, target)
    for batches, weights, places in ((1, 1 << 21, 1), (1, 300, 20), (100, 1 << 21, 1)):
        monkeypatch.setattr(fitting, "BATCHES", batches)
        monkeypatch.setattr(fitting, "WEIGHTS", weights)
        monkeypatch.setattr(variance_layout, "PLACES", places)
        variance_layout.lay_out.cache_clear()
        new = tlv_jax.apply_transfer(plan, key, source, target)
        chex.assert_trees_all_equal(new, expected)
    variance_layout.lay_out.cache_clear()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sources_that_are_not_finite_are_refused(key, bad):
    source = trees.source_tree()
    source["conv1"]["kernel"][0, 0, 0, :2] = bad
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'conv1/kernel' has 2 values"):
        tlv_jax.transfer(source, trees.target_tree(), key=key)


def test_known_weights_are_checked_where_the_key_alone_is_traced(key):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target)
    expected = tlv_jax.apply_transfer(plan, key, source, target)

    def apply(key):
        return tlv_jax.apply_transfer(plan, key, source, target)

    chex.assert_trees_all_close(jax.jit(apply)(key), expected, rtol=1e-6)
    source["conv1"]["kernel"][0] = np.nan
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'conv1/kernel'"):
        jax.jit(lambda key: apply(key))(key)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("rule", ["variance", "clip"])
def test_it_does_not_matter_where_the_value_stands(key, rule, bad):
    rule = {
        "variance": functools.partial(tlv_jax.rules.variance, pool="max"),
        "clip": tlv_jax.rules.clip,
    }[rule]
    # Filters are thinned or not, and of kernels that shrink the largest weights count.
    sizes = {"conv1": (5, 5, 3, 8), "conv2": (3, 3, 8, 6), "conv3": (1, 1, 6, 9)}
    source = {path: {"kernel": trees.normal(0, *size)} for path, size in sizes.items()}
    sizes = {"conv1": (3, 3, 3, 6), "conv2": (3, 3, 6, 7), "conv3": (1, 1, 7, 4)}
    target = {path: {"kernel": trees.normal(1, *size)} for path, size in sizes.items()}
    plan = tlv_jax.plan_transfer(source, target, rule=rule)
    for path in sizes:
        for place in (0, -1):
            spoilt = copy.deepcopy(source)
            spoilt[path]["kernel"].flat[place] = bad
            with pytest.raises(tlv_jax.NonFiniteSourceError, match=f"'{path}/kernel' has 1 values"):
                tlv_jax.apply_transfer(plan, key, spoilt, target)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sources_of_a_drawn_head_are_refused_too(key, bad):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, head="statistics")
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


@pytest.mark.parametrize("side", ["src_params", "dst_params"])
@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_a_plan_for_other_trees_is_refused(key, side, change):
    trees_by_side = {"src_params": trees.source_tree(), "dst_params": trees.target_tree()}
    plan = tlv_jax.plan_transfer(*trees_by_side.values())
    if change == "missing":
        del trees_by_side[side]["conv1"]
    else:
        trees_by_side[side]["conv1"]["kernel"] = np.zeros((1, 1, 3, 5), np.float32)
    found = "no such leaf" if change == "missing" else r"\(1, 1, 3, 5\)"
    with pytest.raises(tlv_jax.PlanMismatchError, match=f"{side}.*'conv1/kernel'.*found {found}"):
        tlv_jax.apply_transfer(plan, key, *trees_by_side.values())


def test_the_shuffle_is_unlike_for_unlike_filters(key):
    kernel = jnp.broadcast_to(jnp.arange(8.0)[:, None], (1, 1, 8, 6))
    shuffled = np.asarray(rules.variance(key, kernel, kernel))
    assert len({shuffled[..., o].tobytes() for o in range(6)}) > 1
    assert (np.sort(shuffled, axis=2) == np.asarray(kernel)).all()


@pytest.mark.parametrize("rescale", ["he", "source"])
def test_kernels_are_brought_to_a_standard_deviation(key, rescale):
    source, target = trees.source_tree(), trees.target_tree()
    plan = tlv_jax.plan_transfer(source, target, rescale=rescale, kinds=("conv", "dense"))
    assert f"rescaled: {rescale}" in str(plan)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    for source_path, path in plan.pairs:
        kernel = new[path]["kernel"]
        fan_in = np.prod(kernel.shape[:-1])
        wanted = np.sqrt(2 / fan_in) if rescale == "he" else source[source_path]["kernel"].std()
        assert kernel.std() == pytest.approx(wanted, rel=1e-5)


def test_kernels_without_spread_are_not_rescaled(key):
    source = {"conv": {"kernel": np.zeros((1, 1, 2, 2), np.float32)}}
    plan = tlv_jax.plan_transfer(source, source, rule=rules.clip, rescale="he")
    assert not tlv_jax.apply_transfer(plan, key, source, source)["conv"]["kernel"].any()


def test_of_several_sources_each_layer_takes_the_best(key):
    target = trees.target_tree()
    alike = jax.tree.map(lambda leaf: leaf + 1, target)
    sources = [trees.source_tree(), alike]
    plan = tlv_jax.plan_transfer(sources, target, rule=rules.clip, kinds=ALL)
    chosen = dict(map(reversed, plan.pairs))
    assert chosen["conv1"] == "1/conv1"
    assert chosen["bn1"] == "1/bn1"
    assert chosen["conv2"] == "1/conv2"
    assert tlv_jax.plan_transfer([alike, alike], target).pairs[0] == ("0/conv1", "conv1")
    new = tlv_jax.apply_transfer(plan, key, sources, target)
    np.testing.assert_array_equal(new["conv1"]["kernel"], alike["conv1"]["kernel"])
    np.testing.assert_array_equal(new["bn1"]["bias"], alike["bn1"]["bias"])
    chex.assert_trees_all_equal_shapes_and_dtypes(tlv_jax.transfer(sources, target), target)


def test_of_several_sources_the_layers_may_be_given():
    target = trees.target_tree()
    layers = tlv_jax.standardization.find_layers(target, name="t")[0]
    plan = tlv_jax.plan_transfer([trees.source_tree(), target], target, src_layers=[None, layers])
    assert plan.pairs[0] == ("1/conv1", "conv1")
    with pytest.raises(tlv_jax.OptionError, match="each of the 2 sources"):
        tlv_jax.plan_transfer([target, target], target, src_layers=[layers])


@pytest.mark.filterwarnings("error")
def test_unlike_networks_are_warned_of():
    source, target = trees.source_tree(), trees.target_tree()
    with pytest.warns(tlv_jax.SimilarityWarning, match="similarity 0.35"):
        tlv_jax.transfer(source, target)
    tlv_jax.transfer(target, target)
    tlv_jax.transfer(source, target, plan=tlv_jax.plan_transfer(source, target))


EIGHT_DEVICES = """
import jax, numpy as np, tlv_jax, trees
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("model",))
assert mesh.size == 8

def tree(seed, width):
    shapes = {"a": (3, 3, 8, width), "b": (1, 1, width, 16), "c": (16, 8)}
    return {name: {"kernel": trees.normal(seed, *shape)} for name, shape in shapes.items()}

def divided(tree):
    def place(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model")
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    return jax.tree.map(place, tree)

source, target = tree(0, 32), tree(1, 24)
for preset in (tlv_jax.presets.tlvfc(), tlv_jax.presets.dpiat()):
    plan = tlv_jax.plan_transfer(source, target, **preset)
    expected = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), divided(source), divided(target))
    # Not bit for bit: pooled statistics are summed in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, expected)
    for leaf in jax.tree.leaves(new):
        assert {shard.data.nbytes for shard in leaf.addressable_shards} == {leaf.nbytes // 8}
"""


def test_over_eight_devices_none_holds_the_whole_tree():
    tests = Path(__file__).parent
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **flags, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-c", EIGHT_DEVICES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
