"""A plan is carried out in NumPy or traced, on one device or several: with the same answer."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from helpers import compilations
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import tlv_jax
from tlv_jax import ConsistentChannels, Method, methods, rules

ALL = ("conv", "dense", "norm", "bias")
SOURCE = trees.small_network(0, 8, 16)
TARGET = trees.small_network(100, 6, 20, size=5)
DEEPER = trees.small_network(200, 12, 20, size=5, more=True)
EXACT = rules.Variance(keep="max", remove="min", shuffle=False)
DRAWN = Method(
    rule=rules.Variance(keep="random", remove="random", pad="init", pool="max"),
    head="statistics",
    rescale="he",
)
METHODS = {
    "default": methods.DEFAULT,
    "tlvfc": methods.TLVFC,
    "drawn": DRAWN,
    "full": dataclasses.replace(methods.DPIAT, rule=rules.Full(), rescale="source"),
    "weight_selection": methods.WEIGHT_SELECTION,
    "variance": Method(rule=EXACT, kinds=ALL, channels=ConsistentChannels("variance")),
    "trace": Method(
        rule=rules.Trace(),
        kinds=("conv", "norm", "bias"),
        channels=ConsistentChannels("trace", "copy"),
        head="statistics",
    ),
    "net2net": methods.NET2NET,
}
jitted = jax.jit(tlv_jax.apply_transfer, static_argnums=0)


def target_of(name):
    return DEEPER if name == "net2net" else TARGET


def close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_under_jit_every_method_gives_the_same(key, name):
    target = target_of(name)
    plan = tlv_jax.plan_transfer(SOURCE, target, METHODS[name])
    expected = tlv_jax.apply_transfer(plan, key, SOURCE, target)
    new = jitted(plan, key, SOURCE.params, target.params)
    close(new, expected)
    replaced = {path for path, _ in plan.target_leaves}
    assert replaced | {leaf.path for leaf in plan.untouched} == set(trees.leaves(target.params))
    for path, leaf in trees.leaves(expected).items():
        changed = not np.array_equal(leaf, trees.leaves(target.params)[path])
        assert changed == (path in replaced), path


@pytest.mark.parametrize("traced", ["key", "source", "target"])
def test_whichever_argument_is_traced_the_answer_is_the_same(key, traced):
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, METHODS["trace"])
    arguments = {"key": key, "src": SOURCE.params, "dst": TARGET.params}
    argument = {"key": "key", "source": "src", "target": "dst"}[traced]

    def apply(value):
        return tlv_jax.apply_transfer(plan, **{**arguments, argument: value})

    close(jax.jit(apply)(arguments[argument]), apply(arguments[argument]))


def test_sixteen_seeds_in_one_call(key):
    keys = jax.random.split(key, 16)
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.TLVFC)
    apply = functools.partial(tlv_jax.apply_transfer, plan, src=SOURCE, dst=TARGET)
    many = jax.jit(jax.vmap(apply))(keys)
    assert many["stem"]["kernel"].shape == (16, 5, 5, 3, 6)
    assert len({kernel.tobytes() for kernel in np.asarray(many["stem"]["kernel"])}) == 16
    for number in (0, 5):
        close(jax.tree.map(lambda leaf, n=number: leaf[n], many), apply(keys[number]))


def test_a_whole_transfer_may_stand_in_a_jitted_function():
    @jax.jit
    def initial(source, target):
        networks = (
            dataclasses.replace(network, params=params)
            for network, params in ((SOURCE, source), (TARGET, target))
        )
        return tlv_jax.transfer(*networks, method=methods.DPIAT)

    expected = tlv_jax.transfer(SOURCE, TARGET, method=methods.DPIAT)
    close(initial(SOURCE.params, TARGET.params), expected)


def test_keys_of_the_older_form_draw_the_same(key):
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.TLVFC)
    expected = tlv_jax.apply_transfer(plan, key, SOURCE, TARGET)
    for older in (jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        new = tlv_jax.apply_transfer(plan, older, SOURCE, TARGET)
        chex.assert_trees_all_equal(new, expected)


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_seeds_without_jit(key):
    source, target = {"conv": trees.normal(0, 1, 1, 4, 5)}, {"conv": trees.normal(1, 1, 1, 6, 7)}
    plan = tlv_jax.plan_transfer(source, target, Method(rule=rules.Full()))
    apply = functools.partial(tlv_jax.apply_transfer, plan, src=source, dst=target)
    keys = jax.random.split(key, 3)
    for number, kernel in enumerate(jax.vmap(apply)(keys)["conv"]):
        np.testing.assert_array_equal(kernel, apply(keys[number])["conv"])


def test_equal_plans_are_one_static_argument(key):
    apply = jax.jit(chex.assert_max_traces(n=1)(tlv_jax.apply_transfer), static_argnums=0)
    for seed in range(3):
        plan = tlv_jax.plan_transfer(SOURCE, TARGET, Method(rule=rules.Clip()))
        apply(plan, jax.random.fold_in(key, seed), SOURCE.params, TARGET.params)


@pytest.mark.parametrize("name", ["tlvfc", "full", "variance"])
def test_a_transfer_between_other_shapes_compiles_nothing_more(key, name):
    # What jax.random needs is compiled once, whatever the shapes.
    method = dataclasses.replace(METHODS[name], head="keep")
    tlv_jax.transfer(SOURCE, TARGET, key=key, method=method)
    source, target = trees.small_network(0, 9, 11), trees.small_network(100, 7, 13, size=5)
    with compilations() as counts:
        tlv_jax.transfer(source, target, key=key, method=method)
    assert not counts


def test_normal_values_are_compiled_once_for_each_size(key):
    tlv_jax.transfer(SOURCE, TARGET, key=key, method=DRAWN)
    source, target = trees.small_network(0, 9, 11), trees.small_network(100, 7, 13, size=5)
    with compilations() as counts:
        tlv_jax.transfer(source, target, key=key, method=DRAWN)
    assert counts.total() <= 3, counts  # two kernels that are padded, and the head


@pytest.mark.parametrize("name", METHODS)
def test_arguments_are_only_read_and_share_no_memory_with_the_result(key, name):
    source, target = (jax.tree.map(np.copy, n.params) for n in (SOURCE, target_of(name)))
    plan = tlv_jax.plan_transfer(SOURCE, target_of(name), METHODS[name])
    given = [*jax.tree.leaves(source), *jax.tree.leaves(target)]
    before = [leaf.copy() for leaf in given]
    for leaf in given:
        leaf.setflags(write=False)
    new = trees.leaves(tlv_jax.apply_transfer(plan, key, source, target))
    chex.assert_trees_all_equal(given, before)
    for path, _ in plan.target_leaves:
        assert new[path].flags.writeable
        assert not any(np.shares_memory(new[path], leaf) for leaf in given), path
    for leaf in plan.untouched:
        assert new[leaf.path] is trees.leaves(target)[leaf.path]


def test_a_transfer_into_itself_is_a_copy(key):
    method = Method(rule=EXACT, kinds=ALL)
    for params in (SOURCE.params, jax.tree.map(jnp.array, SOURCE.params)):
        plan = tlv_jax.plan_transfer(SOURCE, SOURCE, method)
        new = tlv_jax.apply_transfer(plan, key, params, params)
        chex.assert_trees_all_equal(new, params)
        for leaf, other in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
            assert not np.shares_memory(np.asarray(leaf), np.asarray(other))


def test_each_leaf_lies_where_the_target_keeps_its_own(key):
    first, second = jax.devices()[:2]
    target = {name: dict(leaves) for name, leaves in TARGET.params.items()}
    target["stem"]["kernel"] = jax.device_put(target["stem"]["kernel"], second)
    target["block"]["kernel"] = jnp.asarray(target["block"]["kernel"])
    plan = tlv_jax.plan_transfer(SOURCE, TARGET)
    expected = tlv_jax.apply_transfer(plan, key, SOURCE, TARGET)
    new = tlv_jax.apply_transfer(plan, key, SOURCE, target)
    close(new, expected)
    stem, block, out = (new[name]["kernel"] for name in ("stem", "block", "out"))
    assert stem.committed and stem.sharding == SingleDeviceSharding(second)  # noqa: PT018
    assert not block.committed and block.devices() == {first}  # noqa: PT018
    assert type(out) is np.ndarray


@pytest.mark.parametrize("name", ["drawn", "variance"])
def test_parameters_divided_over_devices_give_the_same_and_stay_divided(key, name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def divided(leaf):
        even = leaf.shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "data" if even else None)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    plan = tlv_jax.plan_transfer(SOURCE, TARGET, METHODS[name])
    expected = tlv_jax.apply_transfer(plan, key, SOURCE, TARGET)
    source, target = (jax.tree.map(divided, network.params) for network in (SOURCE, TARGET))
    for apply in (tlv_jax.apply_transfer, jitted):
        new = apply(plan, key, source, target)
        close(jax.device_get(new), expected)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    for leaf, own in zip(jax.tree.leaves(new), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == own.sharding
    shards = new["stem"]["kernel"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(5, 5, 3, 3)}


@pytest.mark.parametrize("name", ["default", "tlvfc", "trace"])
def test_half_precision_and_mixed_types_are_kept(key, name):
    types = np.float32, jnp.bfloat16, np.float16

    def mixed(network, first):
        leaves, structure = jax.tree.flatten(network.params)
        cast = [leaf.astype(types[(first + n) % 3]) for n, leaf in enumerate(leaves)]
        return structure.unflatten(cast)

    plan = tlv_jax.plan_transfer(SOURCE, TARGET, METHODS[name])
    source, target = mixed(SOURCE, 0), mixed(TARGET, 1)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, target)
    chex.assert_tree_all_finite(new)
    close(jitted(plan, key, source, target), new, rtol=1e-2)


def test_float64_of_numpy_stays(key):
    target = jax.tree.map(lambda leaf: leaf.astype(np.float64), TARGET.params)
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, DRAWN)
    new = tlv_jax.apply_transfer(plan, key, SOURCE, target)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, target)


def stacked_network(seed, blocks, channels):
    """Convs whose kernels and biases `jax.lax.scan` takes off a stack."""

    def fn(params, images):
        def block(images, layer):
            dimensions = ("NHWC", "HWIO", "NHWC")
            images = jax.lax.conv_general_dilated(
                images, layer["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
            )
            return images + layer["bias"][None, None, None], None

        return jax.lax.scan(block, images, params["blocks"])[0]

    kernels = trees.normal(seed, blocks, 3, 3, channels, channels)
    params = {"blocks": {"kernel": kernels, "bias": trees.normal(seed + 1, blocks, channels)}}
    return tlv_jax.trace(fn, params, jax.ShapeDtypeStruct((1, 5, 5, channels), np.float32))


@pytest.mark.parametrize("traced", ["nothing", "key", "source", "target", "all"])
def test_stacked_layers_are_transferred_step_by_step(key, traced):
    source, target = stacked_network(0, 3, 6), stacked_network(10, 2, 4)
    method = Method(rule=rules.Variance(remove="max"), kinds=ALL, match=tlv_jax.matching.ByIndex())
    plan = tlv_jax.plan_transfer(source, target, method)
    assert plan.pairs == (("blocks[0]", "blocks[0]"), ("blocks[2]", "blocks[1]"))
    arguments = {"key": key, "src": source.params, "dst": target.params}
    names = {"nothing": [], "key": ["key"], "source": ["src"], "target": ["dst"]}
    given = {name: arguments[name] for name in names.get(traced, arguments)}
    new = jax.jit(lambda given: tlv_jax.apply_transfer(plan, **{**arguments, **given}))(given)
    bias = source.params["blocks"]["bias"][[0, 2], 1:5]
    np.testing.assert_array_equal(new["blocks"]["bias"], bias)
    close(new, tlv_jax.apply_transfer(plan, key, source, target))
    same = tlv_jax.plan_transfer(target, target, Method(rule=EXACT, kinds=ALL))
    again = tlv_jax.apply_transfer(same, key, target, target)
    chex.assert_trees_all_equal(again, target.params)


def mean_rule(key, source, target):
    """A rule of a user's own, which a plan has never seen."""
    assert isinstance(source, jax.Array)
    assert isinstance(target, jax.Array)
    return target.at[:].set(source.mean()) + jax.random.normal(key, target.shape)


FOREIGN = {
    "function": mean_rule,
    "lambda": lambda key, source, target: jnp.full(target.shape, jnp.max(source)),
    "partial": functools.partial(lambda key, source, target, scale: scale * target, scale=2.0),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_any_function_of_jax_is_a_rule(key, name):
    rule = FOREIGN[name]
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, Method(rule=rule, rescale="source"))
    new = tlv_jax.apply_transfer(plan, key, SOURCE, TARGET)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, TARGET.params)
    close(jitted(plan, key, SOURCE.params, TARGET.params), new)
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, Method(rule=rule))
    kernel = tlv_jax.apply_transfer(plan, key, SOURCE, TARGET)["block"]["kernel"]
    source, target = SOURCE.params["block"]["kernel"], TARGET.params["block"]["kernel"]
    if name == "lambda":
        assert (kernel == source.max()).all()
    if name == "partial":
        np.testing.assert_array_equal(kernel, 2 * target)


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_under_jit_kernels_of_equal_shapes_are_fitted_by_one_operation(key):
    calls = []

    def counted(key, source, target):
        calls.append(source.shape)
        return source

    tree = {f"conv{i}": {"kernel": trees.normal(i, 3, 3, 4, 4)} for i in range(7)}
    plan = tlv_jax.plan_transfer(tree, tree, Method(rule=counted))
    calls.clear()
    chex.assert_trees_all_equal(jitted(plan, key, tree, tree), tree)
    assert calls == [(3, 3, 4, 4)]


def test_a_rule_that_hands_its_argument_back_shares_nothing(key):
    for rule in (lambda key, source, target: source, lambda key, source, target: target):
        plan = tlv_jax.plan_transfer(SOURCE, SOURCE, Method(rule=rule))
        new = tlv_jax.apply_transfer(plan, key, SOURCE, SOURCE)
        kernel, own = (tree["block"]["kernel"] for tree in (new, SOURCE.params))
        np.testing.assert_array_equal(kernel, own)
        assert kernel.flags.writeable
        assert not np.shares_memory(kernel, own)


def test_a_layer_draws_the_same_whatever_else_is_planned(key):
    plans = [
        tlv_jax.plan_transfer(SOURCE, TARGET, dataclasses.replace(methods.TLVFC, kinds=kinds))
        for kinds in (("conv",), ALL)
    ]
    first, second = (tlv_jax.apply_transfer(plan, key, SOURCE, TARGET) for plan in plans)
    np.testing.assert_array_equal(first["block"]["kernel"], second["block"]["kernel"])


def test_other_keys_draw_otherwise(key):
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.TLVFC)
    first, other = (tlv_jax.apply_transfer(plan, k, SOURCE, TARGET) for k in jax.random.split(key))
    assert not np.array_equal(first["stem"]["kernel"], other["stem"]["kernel"])
    assert not np.array_equal(first["fc"]["kernel"], other["fc"]["kernel"])
