"""What `trace` finds in a function over a dict of kernels, and what a bare tree is taken for."""

import dataclasses
import functools
import linecache
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
import zoo

import tlv_jax
from tlv_jax import methods

NHWC = ("NHWC", "HWIO", "NHWC")
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
conv = functools.partial(
    jax.lax.conv_general_dilated, padding="SAME", window_strides=(1, 1), dimension_numbers=NHWC
)


def kernel(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def chain(params, x):
    return conv(conv(x, params["b"]), params["a"])


def test_a_network_is_a_frozen_record_of_what_was_given_and_found():
    params = {"a": kernel(3, 3, 6, 5), "b": kernel(1, 1, 4, 6)}
    network = tlv_jax.trace(chain, params, IMAGES)
    assert network.fn is chain
    assert network.params is params
    assert [layer.path for layer in network.layers] == ["b", "a"]
    assert set(network.channels) == {"a", "b"}
    assert network.channels["a"].reads == network.channels["b"].writes
    assert repr(network) == ("Network(dict of 2 conv, 0 dense, 0 norm; order of execution, traced)")
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.params = {}


def test_kinds_groups_strides_sizes_and_inputs_of_a_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3), strides=2, name="z")(x)
            x = nn.Conv(8, (5, 5), feature_group_count=4, name="a")(nn.relu(x))
            x = nn.LayerNorm(name="m")(x)
            return nn.Dense(7, name="b")(x.mean((1, 2)))

    params = jax.eval_shape(Net().init, jax.random.key(0), IMAGES)
    layers = tlv_jax.trace(Net().apply, params, IMAGES).layers
    assert [
        (layer.path, layer.kind, layer.shape, layer.size, layer.inputs) for layer in layers
    ] == [
        ("params/z", "conv", (3, 3, 4, 8), (4, 4), ()),
        ("params/a", "conv", (5, 5, 2, 8), (4, 4), ("params/z",)),
        ("params/m", "norm", (8,), (4, 4), ("params/a",)),
        ("params/b", "dense", (8, 7), (), ("params/m",)),
    ]
    assert [(layer.groups, layer.strides) for layer in layers[:2]] == [(1, (2, 2)), (4, (1, 1))]


def with_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(None, None)
    return wrapped


def with_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda *arguments: (function(*arguments), ()), lambda *_: (None, None))
    return wrapped


def vmapped(function):
    return lambda x, kernel: jax.vmap(function, (0, None))(x[None], kernel)[0]


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, with_jvp, with_vjp, vmapped])
def test_calls_are_entered(wrap):
    def fn(params, x):
        block = wrap(lambda x, kernel: conv(x, kernel))
        return block(block(x, params["c"]), params["b"])

    params = {"b": kernel(1, 1, 4, 4), "c": kernel(3, 3, 4, 4)}
    layers = tlv_jax.trace(fn, params, IMAGES).layers
    assert [(layer.path, layer.inputs) for layer in layers] == [("c", ()), ("b", ("c",))]


@pytest.mark.parametrize(
    ("prepare", "axes"),
    [
        (lambda w: w, (0, 1, 2, 3)),
        (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), (0, 1, 2, 3)),
        (lambda w: jnp.transpose(w, (1, 0, 2, 3)), (1, 0, 2, 3)),
        (lambda w: w - w.mean((0, 1, 2), keepdims=True), (0, 1, 2, 3)),
        (lambda w: jnp.flip(w, 0), (0, 1, 2, 3)),
    ],
    ids=["as it is", "cast", "transposed", "standardized", "flipped"],
)
def test_a_kernel_is_followed_to_its_use(prepare, axes):
    fn = lambda params, x: conv(x, prepare(params["w"]))  # noqa: E731
    (layer,) = tlv_jax.trace(fn, {"w": kernel(3, 3, 4, 6)}, IMAGES).layers
    assert (layer.axes, layer.shape) == (axes, (3, 3, 4, 6))


@pytest.mark.parametrize("dimensions", [("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NHWC"), NHWC])
def test_axes_come_from_the_dimension_numbers(dimensions):
    sizes = {"O": 6, "I": 4, "H": 3, "W": 2}
    images = kernel(*({"N": 1, "H": 8, "W": 8, "C": 4}[axis] for axis in dimensions[0]))
    params = {"w": kernel(*(sizes[axis] for axis in dimensions[1]))}
    fn = lambda params, x: conv(x, params["w"], dimension_numbers=dimensions)  # noqa: E731
    (layer,) = tlv_jax.trace(fn, params, images).layers
    assert layer.shape == (3, 2, 4, 6)
    assert [params["w"].shape[axis] for axis in layer.axes] == [3, 2, 4, 6]


def test_a_parameter_used_twice_is_one_layer_with_two_calls():
    fn = lambda params, x: conv(conv(x, params["w"]), params["w"])  # noqa: E731
    (layer,) = tlv_jax.trace(fn, {"w": kernel(3, 3, 4, 4)}, IMAGES).layers
    assert layer.calls == 2


@pytest.mark.parametrize(
    "normalize",
    [
        lambda x, mean, var, scale: (x - mean) / jnp.sqrt(var + 1e-5) * scale,
        lambda x, mean, var, scale: (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale),
        lambda x, mean, var, scale: (x - mean) * (scale / jnp.sqrt(var + 1e-5)),
    ],
    ids=["divided", "times both", "times the quotient"],
)
def test_running_statistics_are_found_by_their_use(normalize):
    def fn(params, x):
        vectors = (params["a"], params["b"], params["norm"]["scale"])
        return normalize(conv(x, params["w"]), *(v.reshape(1, 1, 1, -1) for v in vectors))

    params = {"w": kernel(1, 1, 4, 4), "norm": {"scale": kernel(4)}, "a": kernel(4), "b": kernel(4)}
    _, norm = tlv_jax.trace(fn, params, IMAGES).layers
    assert (norm.path, norm.vectors) == ("norm", (("mean", "a"), ("var", "b")))
    # What no scale of a norm follows is no norm's.
    params["norm"] = {"gain": kernel(4)}
    fn_without = lambda params, x: fn({**params, "norm": {"scale": params["norm"]["gain"]}}, x)  # noqa: E731
    assert len(tlv_jax.trace(fn_without, params, IMAGES).layers) == 1


def test_branches_and_loops_are_entered():
    def fn(params, x):
        one, two = (lambda x, name=name: conv(x, params[name]) for name in "ab")
        x = jax.lax.cond(x.sum() > 0, one, two, x)
        body = lambda i, x: conv(x, params["c"])  # noqa: E731
        return jax.lax.fori_loop(0, x.shape[0] + jnp.int32(x.sum()), body, x)

    layers = tlv_jax.trace(fn, {name: kernel(1, 1, 4, 4) for name in "abc"}, IMAGES).layers
    assert {layer.path for layer in layers} == set("abc")


def test_unused_parameters_are_not_listed():
    fn = lambda params, x: conv(x, params["used"])  # noqa: E731
    params = {"used": kernel(1, 1, 4, 4), "unused": kernel(1, 1, 4, 4)}
    assert [layer.path for layer in tlv_jax.trace(fn, params, IMAGES).layers] == ["used"]


def test_leaves_that_are_not_arrays_are_handed_on_as_they_are():
    def fn(params, x):
        assert params["times"] == 2
        return params["activation"](conv(x, params["w"]))

    params = {"w": kernel(1, 1, 4, 4), "times": 2, "activation": jnp.tanh}
    assert [layer.path for layer in tlv_jax.trace(fn, params, IMAGES).layers] == ["w"]


def test_inputs_that_are_not_arrays_are_handed_on_too():
    def fn(params, x, train, mode):
        return conv(x, params["a" if train and mode == "full" else "b"])

    params = {"a": kernel(1, 1, 4, 4), "b": kernel(3, 3, 4, 4)}
    assert [layer.path for layer in tlv_jax.trace(fn, params, IMAGES, True, "full").layers] == ["a"]
    assert [layer.path for layer in tlv_jax.trace(fn, params, IMAGES, False, None).layers] == ["b"]


def test_vgg16_into_resnet18_has_the_published_order_when_traced():
    source, target = (zoo.network_of(name) for name in ("vgg16", "resnet18"))
    plan = tlv_jax.plan_transfer(source, target, methods.TLVFC)
    convs = [layer.path for layer in source.layers if layer.kind == "conv"]
    assert [convs.index(path) for path, _ in plan.pairs] == trees.VGG16_TO_RESNET18
    bare = tlv_jax.plan_transfer(trees.shapes("vgg16"), trees.shapes("resnet18"), methods.TLVFC)
    assert plan.pairs == bare.pairs


@pytest.mark.parametrize(
    ("fn", "params"),
    [
        (lambda params, x: x, {"w": np.zeros((3, 3, 4, 4))}),
        (lambda params, x: x * params["w"], {"w": np.zeros((1, 8, 8, 4))}),
    ],
    ids=["unused", "no kernel"],
)
def test_a_function_without_kernels_is_refused(fn, params):
    with pytest.raises(tlv_jax.ParameterTreeError, match="convolves or multiplies with none"):
        tlv_jax.trace(fn, params, IMAGES)


def test_parameters_without_arrays_are_refused():
    with pytest.raises(tlv_jax.ParameterTreeError, match="expected a pytree of arrays"):
        tlv_jax.trace(lambda params, x: x, {}, IMAGES)


def bare(*names):
    return {name: {"kernel": np.ones((1, 1, 4, 4), np.float32)} for name in names}


UNKNOWN = bare("stem", "block2", "block10")
TRACED = tlv_jax.trace(lambda params, x: conv(x, params["w"]), {"w": kernel(1, 1, 4, 4)}, IMAGES)
ARRAYS = dataclasses.replace(TRACED, params={"w": np.ones((1, 1, 4, 4), np.float32)})


@pytest.mark.parametrize("function", ["transfer", "plan_transfer", "similarity"])
@pytest.mark.parametrize(
    ("src", "dst", "named"),
    [
        (UNKNOWN, ARRAYS, "src: "),
        (ARRAYS, UNKNOWN, "dst: "),
        (UNKNOWN, UNKNOWN, "src and dst: "),
        ([UNKNOWN, UNKNOWN], ARRAYS, "src: "),
        ([ARRAYS, ARRAYS], UNKNOWN, "dst: "),
    ],
    ids=["source", "target", "both", "list", "mixture"],
)
def test_a_tree_of_unknown_order_is_warned_of_once_where_it_was_passed(function, src, dst, named):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", tlv_jax.SimilarityWarning)
        getattr(tlv_jax, function)(src, dst)  # the caller's line
    (warning,) = caught
    assert warning.category is tlv_jax.UnknownOrderWarning
    assert str(warning.message).startswith(named)
    assert "tlv_jax.trace(fn, params, images)" in str(warning.message)
    assert "# the caller's line" in linecache.getline(warning.filename, warning.lineno)


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_a_tree_of_unknown_order_is_read_in_the_natural_order_of_its_paths():
    by_index = tlv_jax.Method(match=tlv_jax.matching.ByIndex())
    plan = tlv_jax.plan_transfer(UNKNOWN, bare("a", "b", "c"), by_index)
    assert [source for source, _ in plan.pairs] == ["block2", "block10", "stem"]
    assert "natural order of the paths, not known to be that of execution" in plan.source_order


def test_trees_of_the_zoo_and_traced_networks_are_not_warned_of():
    network, tree = zoo.network_of("resnet18", 0), zoo.variables_of("resnet18", 1)
    for src, dst in ((network, tree), (tree, tree["params"])):
        tlv_jax.similarity(src, dst)
        plan = tlv_jax.plan_transfer(src, dst)
    assert plan.target_order == "execution order of the resnet family"
    assert tlv_jax.plan_transfer(network, network).target_order == network.order


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"params": UNKNOWN, "opt_state": [{"trace": UNKNOWN}]}, "opt_state/0/trace/block2/kernel"),
        ((UNKNOWN, {"count": np.int32(1), "mu": UNKNOWN, "nu": UNKNOWN}), "1/mu/block2/kernel"),
    ],
    ids=["by its name", "by its moments"],
)
def test_a_bare_tree_with_the_state_of_an_optimizer_is_refused(tree, path):
    for src, dst, name in ((tree, UNKNOWN, "src"), (UNKNOWN, tree, "dst")):
        with pytest.raises(tlv_jax.ParameterTreeError, match=f"{name}: '{path}'.*an optimizer"):
            tlv_jax.plan_transfer(src, dst)


def test_in_a_traced_tree_the_state_of_an_optimizer_is_left_alone():
    state = {"params": ARRAYS.params, "opt_state": ARRAYS.params, "step": np.int32(3)}
    network = tlv_jax.trace(lambda state, x: TRACED.fn(state["params"], x), state, IMAGES)
    plan = tlv_jax.plan_transfer(network, network)
    assert plan.pairs == (("params", "params"),)
    assert {leaf.path for leaf in plan.untouched} == {"opt_state/w", "step"}


def test_a_layer_may_be_called_as_a_moment_is():
    with pytest.warns(tlv_jax.UnknownOrderWarning):
        assert len(tlv_jax.plan_transfer(bare("mu", "sigma"), bare("mu", "sigma")).pairs) == 2


def test_applying_and_reporting_do_not_warn():
    with pytest.warns(tlv_jax.UnknownOrderWarning):
        plan = tlv_jax.plan_transfer(UNKNOWN, UNKNOWN)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), UNKNOWN, UNKNOWN)
    tlv_jax.report(plan, UNKNOWN, UNKNOWN, new)


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_a_list_of_trees_is_a_tree_and_a_list_of_networks_a_mixture():
    assert tlv_jax.plan_transfer([UNKNOWN], UNKNOWN).pairs[0] == ("0/block2", "block2")
    wide = tlv_jax.trace(TRACED.fn, {"w": kernel(1, 1, 4, 8)}, IMAGES)
    assert tlv_jax.plan_transfer([wide, ARRAYS], ARRAYS).pairs == (("1/w", "w"),)
    plan = tlv_jax.plan_transfer([ARRAYS], ARRAYS)  # of one source
    assert plan == tlv_jax.plan_transfer(ARRAYS, ARRAYS)
    tlv_jax.apply_transfer(plan, jax.random.key(0), [ARRAYS], ARRAYS)
    new = tlv_jax.transfer(UNKNOWN, [UNKNOWN["stem"], UNKNOWN["block2"]])
    assert isinstance(new, list)


@pytest.mark.parametrize("function", ["transfer", "plan_transfer", "similarity"])
def test_a_list_of_networks_and_trees_is_refused(function):
    with pytest.raises(tlv_jax.ParameterTreeError, match="expected a list of networks alone"):
        getattr(tlv_jax, function)([ARRAYS, UNKNOWN], ARRAYS)
