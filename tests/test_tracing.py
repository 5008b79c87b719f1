import functools
import time

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from flax import nnx

import tlv_jax
from tlv_jax import models

NHWC = ("NHWC", "HWIO", "NHWC")
conv = functools.partial(jax.lax.conv_general_dilated, padding="SAME", window_strides=(1, 1))


def test_order_kinds_groups_and_strides_of_a_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3), strides=2, name="z")(x)
            x = nn.Conv(8, (5, 5), feature_group_count=4, name="a")(nn.relu(x))
            x = nn.LayerNorm(name="m")(x)
            return nn.Dense(7, name="b")(x.mean((1, 2)))

    x = jnp.zeros((1, 16, 16, 3))
    params = jax.eval_shape(Net().init, jax.random.key(0), x)
    layers = tlv_jax.trace_layers(Net().apply, params, x)
    assert [(layer.path, layer.kind, layer.shape) for layer in layers] == [
        ("params/z", "conv", (3, 3, 3, 8)),
        ("params/a", "conv", (5, 5, 2, 8)),
        ("params/m", "norm", (8,)),
        ("params/b", "dense", (8, 7)),
    ]
    assert [(layer.groups, layer.strides) for layer in layers[:2]] == [(1, (2, 2)), (4, (1, 1))]
    assert [layer.inputs for layer in layers] == [
        (), ("params/z",), ("params/a",), ("params/m",),
    ]  # fmt: skip


def test_an_equinox_model_is_read_channels_first(key):
    keys = jax.random.split(key, 2)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, (3, 5), key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(lambda x: x.mean((1, 2))),
            eqx.nn.Linear(8, 4, key=keys[1]),
        ]
    )
    layers = tlv_jax.trace_layers(lambda model, x: model(x), model, jnp.zeros((3, 8, 8)))
    assert [(layer.kind, layer.shape, layer.axes) for layer in layers] == [
        ("conv", (3, 5, 3, 8), (2, 3, 1, 0)),
        ("dense", (8, 4), (1, 0)),
    ]
    assert layers[1].inputs == ("layers/0",)


def test_an_nnx_model_is_traced_through_its_state():
    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.Conv(4, 5, (1, 1), rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(model)
    layers = tlv_jax.trace_layers(
        lambda state, x: nnx.merge(graph, state)(x), state, jnp.zeros((1, 8, 8, 3))
    )
    assert [layer.shape for layer in layers] == [(3, 3, 3, 4), (1, 1, 4, 5)]


def with_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(None, None)
    return wrapped


def with_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda *arguments: (function(*arguments), ()), lambda *_: (None, None))
    return wrapped


def vmapped(function):
    return lambda kernel, x: jax.vmap(function, (None, 0))(kernel, x[None])[0]


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, with_jvp, with_vjp, vmapped])
def test_calls_are_entered(wrap):
    def block(kernel, x):
        return conv(x, kernel, dimension_numbers=NHWC)

    def fn(params, x):
        return wrap(block)(params["b"], wrap(block)(params["c"], x))

    params = {"b": jnp.zeros((1, 1, 4, 4)), "c": jnp.zeros((3, 3, 3, 4))}
    layers = tlv_jax.trace_layers(fn, params, jnp.zeros((1, 8, 8, 3)))
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
    def fn(params, x):
        return conv(x, prepare(params["w"]), dimension_numbers=NHWC)

    (layer,) = tlv_jax.trace_layers(fn, {"w": jnp.zeros((3, 3, 4, 6))}, jnp.zeros((1, 8, 8, 4)))
    assert (layer.axes, layer.shape) == (axes, (3, 3, 4, 6))


@pytest.mark.parametrize("dimensions", [("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NHWC"), NHWC])
def test_axes_come_from_the_dimension_numbers(dimensions):
    sizes = {"O": 6, "I": 4, "H": 3, "W": 2}
    kernel = jnp.zeros([sizes[axis] for axis in dimensions[1]])
    images = jnp.zeros([{"N": 1, "H": 8, "W": 8, "C": 4}[axis] for axis in dimensions[0]])

    def fn(params, x):
        return conv(x, params["w"], dimension_numbers=dimensions)

    (layer,) = tlv_jax.trace_layers(fn, {"w": kernel}, images)
    assert layer.shape == (3, 2, 4, 6)


def test_several_axes_of_a_projection_are_merged():
    class Attend(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral((2, 3), name="split")(x)
            return nn.DenseGeneral(5, axis=(-2, -1), name="join")(x)

    x = jnp.zeros((1, 4))
    params = jax.eval_shape(Attend().init, jax.random.key(0), x)
    layers = tlv_jax.trace_layers(Attend().apply, params, x)
    assert [layer.shape for layer in layers] == [(4, 6), (6, 5)]


def test_a_parameter_used_twice_is_one_layer_with_two_calls():
    def fn(params, x):
        for _ in range(2):
            x = conv(x, params["w"], dimension_numbers=NHWC)
        return x

    (layer,) = tlv_jax.trace_layers(fn, {"w": jnp.zeros((3, 3, 4, 4))}, jnp.zeros((1, 8, 8, 4)))
    assert layer.calls == 2


def test_scanned_blocks_are_unrolled_in_order():
    def fn(params, x):
        def block(x, layer):
            x = conv(x, layer["a"], dimension_numbers=NHWC)
            return conv(x, layer["b"], dimension_numbers=NHWC), None

        return jax.lax.scan(block, x, params)[0]

    params = {"b": jnp.zeros((2, 1, 1, 4, 4)), "a": jnp.zeros((2, 3, 3, 4, 4))}
    layers = tlv_jax.trace_layers(fn, params, jnp.zeros((1, 8, 8, 4)))
    assert [layer.path for layer in layers] == ["a[0]", "b[0]", "a[1]", "b[1]"]
    assert [layer.index for layer in layers] == [(0,), (0,), (1,), (1,)]
    assert layers[2].inputs == ("b[0]",)
    assert layers[0].shape == (3, 3, 4, 4)


def test_branches_and_loops_are_entered():
    def fn(params, x):
        def one(x):
            return conv(x, params["a"], dimension_numbers=NHWC)

        def two(x):
            return conv(x, params["b"], dimension_numbers=NHWC)

        x = jax.lax.cond(x.sum() > 0, one, two, x)
        body = lambda i, x: conv(x, params["c"], dimension_numbers=NHWC)  # noqa: E731
        return jax.lax.fori_loop(0, x.shape[0] + jnp.int32(x.sum()), body, x)

    params = {name: jnp.zeros((1, 1, 4, 4)) for name in "abc"}
    layers = tlv_jax.trace_layers(fn, params, jnp.zeros((1, 8, 8, 4)))
    assert {layer.path for layer in layers} == set("abc")


def test_residual_sums_and_concatenations_join_their_branches():
    def fn(params, x):
        a = conv(x, params["a"], dimension_numbers=NHWC)
        b = conv(a, params["b"], dimension_numbers=NHWC)
        c = conv(a + b, params["c"], dimension_numbers=NHWC)
        return conv(jnp.concatenate([a, c], -1), params["d"], dimension_numbers=NHWC)

    params = {name: jnp.zeros((1, 1, 4, 4)) for name in "abc"} | {"d": jnp.zeros((1, 1, 8, 4))}
    layers = tlv_jax.trace_layers(fn, params, jnp.zeros((1, 8, 8, 4)))
    inputs = {layer.path: set(layer.inputs) for layer in layers}
    assert inputs == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}}


def test_unused_parameters_are_not_listed():
    def fn(params, x):
        return conv(x, params["used"], dimension_numbers=NHWC)

    params = {"used": jnp.zeros((1, 1, 4, 4)), "unused": jnp.zeros((1, 1, 4, 4))}
    layers = tlv_jax.trace_layers(fn, params, jnp.zeros((1, 8, 8, 4)))
    assert [layer.path for layer in layers] == ["used"]


def test_vgg16_into_resnet18_has_the_published_order_when_traced():
    def traced(name):
        model = models.create(name, num_classes=10)
        variables = trees.shapes(name)
        stats = jax.tree.map(lambda s: jnp.zeros(s.shape), variables.get("batch_stats", {}))
        x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

        def fn(params, x):
            return model.apply({"params": params, "batch_stats": stats}, x)

        return variables["params"], tlv_jax.trace_layers(fn, variables["params"], x)

    (source, source_layers), (target, target_layers) = traced("vgg16"), traced("resnet18")
    traced_layers = {"src_layers": source_layers, "dst_layers": target_layers}
    published = tlv_jax.presets.tlvfc()
    plan = tlv_jax.plan_transfer(source, target, **traced_layers, **published)
    convs = [layer.path for layer in source_layers if layer.kind == "conv"]
    assert [convs.index(path) for path, _ in plan.pairs] == trees.VGG16_TO_RESNET18
    assert plan.pairs == tlv_jax.plan_transfer(source, target, **published).pairs


def test_a_deep_network_is_traced_without_being_run():
    model, variables = models.create("resnet152"), trees.shapes("resnet152", 1000)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    start = time.process_time()
    layers = tlv_jax.trace_layers(model.apply, variables, x)
    assert len(layers) == 311
    assert time.process_time() - start < 60  # nothing is compiled; generous for a slow machine


@pytest.mark.parametrize(
    ("fn", "params"),
    [
        (lambda params, x: x, {"w": np.zeros((3, 3, 4, 4))}),
        (lambda params, x: x * params["w"], {"w": np.zeros((8, 8, 4))}),
    ],
    ids=["unused", "no kernel"],
)
def test_a_function_without_kernels_is_refused(fn, params):
    with pytest.raises(tlv_jax.ParameterTreeError, match="convolves or multiplies with none"):
        tlv_jax.trace_layers(fn, params, jnp.zeros((8, 8, 4)))


def test_parameters_without_arrays_are_refused():
    with pytest.raises(tlv_jax.ParameterTreeError, match="expected a pytree of arrays"):
        tlv_jax.trace_layers(lambda params, x: x, {}, jnp.zeros(3))
