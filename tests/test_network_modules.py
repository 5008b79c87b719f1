"""Tracing single modules of each library: convs of other sorts, attention."""

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import tlv_jax

KEY = jax.eval_shape(lambda: jax.random.key(0))


def linen(make, *inputs):
    module = make()
    params = jax.eval_shape(module.init, KEY, *inputs)
    return tlv_jax.trace(module.apply, params, *inputs).layers


def of_nnx(make, *inputs):
    graph, params = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return tlv_jax.trace(lambda params, *x: nnx.merge(graph, params)(*x), params, *inputs).layers


def equinox(make, *inputs):
    """An Equinox module takes one example, channels first where there are spatial axes."""
    model = eqx.filter_eval_shape(lambda: make(key=jax.random.key(0)))
    if inputs[0].ndim > 3:
        inputs = jax.eval_shape(lambda *x: [jnp.moveaxis(each, -1, 1) for each in x], *inputs)
    return tlv_jax.trace(lambda model, *x: jax.vmap(model)(*x), model, *inputs).layers


def haiku(make, *inputs):
    net = hk.without_apply_rng(hk.transform(lambda *x: make()(*x)))
    params = jax.eval_shape(net.init, KEY, *inputs)
    return tlv_jax.trace(net.apply, params, *inputs).layers


def images(*sizes):
    return jax.ShapeDtypeStruct((2, *sizes, 3), jnp.float32)


@pytest.mark.parametrize(
    ("trace", "make"),
    [
        (linen, lambda: nn.ConvTranspose(6, (3, 5), (2, 2))),
        (linen, lambda: nn.ConvTranspose(6, (3, 5), (2, 2), transpose_kernel=True)),
        (of_nnx, lambda rngs: nnx.ConvTranspose(3, 6, (3, 5), (2, 2), rngs=rngs)),
        (equinox, lambda key: eqx.nn.ConvTranspose2d(3, 6, (3, 5), 2, key=key)),
        (haiku, lambda: hk.Conv2DTranspose(6, (3, 5), 2)),
    ],
    ids=["Linen", "Linen, transposed kernel", "NNX", "Equinox", "Haiku"],
)
def test_a_transposed_conv_has_its_inputs_before_its_outputs(trace, make):
    (layer,) = trace(make, images(8, 8))
    assert (layer.kind, layer.shape, len(layer.vectors)) == ("conv", (3, 5, 3, 6), 1)


@pytest.mark.parametrize(
    ("trace", "make"),
    [
        (linen, lambda: nn.Conv(6, (3, 5), kernel_dilation=2)),
        (of_nnx, lambda rngs: nnx.Conv(3, 6, (3, 5), kernel_dilation=2, rngs=rngs)),
        (equinox, lambda key: eqx.nn.Conv2d(3, 6, (3, 5), dilation=2, padding=4, key=key)),
        (haiku, lambda: hk.Conv2D(6, (3, 5), rate=2)),
    ],
    ids=["Linen", "NNX", "Equinox", "Haiku"],
)
def test_a_dilated_conv_has_the_size_of_its_kernel(trace, make):
    (layer,) = trace(make, images(8, 8))
    assert (layer.shape, layer.strides) == ((3, 5, 3, 6), (1, 1))


@pytest.mark.parametrize("spatial", [(3,), (3, 5, 1)], ids=["1-D", "3-D"])
@pytest.mark.parametrize(
    ("trace", "make"),
    [
        (linen, lambda size: lambda: nn.Conv(6, size)),
        (of_nnx, lambda size: lambda rngs: nnx.Conv(3, 6, size, rngs=rngs)),
        (haiku, lambda size: lambda: hk.ConvND(len(size), 6, size)),
    ],
    ids=["Linen", "NNX", "Haiku"],
)
def test_convs_of_one_and_three_axes(trace, make, spatial):
    (layer,) = trace(make(spatial), images(*[8] * len(spatial)))
    assert (layer.kind, layer.shape) == ("conv", (*spatial, 3, 6))


@pytest.mark.parametrize("size", [(3,), (3, 5, 1)], ids=["1-D", "3-D"])
def test_equinox_convs_of_one_and_three_axes(size):
    def make(key):
        return eqx.nn.Conv(len(size), 3, 6, size, key=key)

    model = eqx.filter_eval_shape(lambda: make(jax.random.key(0)))
    image = jax.ShapeDtypeStruct((3, *[8] * len(size)), jnp.float32)
    (layer,) = tlv_jax.trace(lambda model, x: model(x), model, image).layers
    assert (layer.kind, layer.shape) == ("conv", (*size, 3, 6))
    assert layer.axes == (*range(2, 2 + len(size)), 1, 0)


@pytest.mark.parametrize(
    ("trace", "make", "names"),
    [
        (linen, lambda: nn.MultiHeadAttention(2), ["query", "key", "value", "out"]),
        (
            of_nnx,
            lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs),
            ["query", "key", "value", "out"],
        ),
        (
            equinox,
            lambda key: eqx.nn.MultiheadAttention(2, 8, key=key),
            ["query_proj", "key_proj", "value_proj", "output_proj"],
        ),
        (
            haiku,
            lambda: hk.MultiHeadAttention(2, 4, w_init=hk.initializers.Constant(1), model_size=8),
            ["query", "key", "value", "linear"],
        ),
    ],
    ids=["Linen", "NNX", "Equinox", "Haiku"],
)
def test_attention_is_four_dense_layers(trace, make, names):
    tokens = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
    layers = {layer.path.rpartition("/")[2]: layer for layer in trace(make, *[tokens] * 3)}
    assert set(layers) == set(names)
    assert {(layer.kind, layer.shape) for layer in layers.values()} == {("dense", (8, 8))}
    *projections, out = (layers[name] for name in names)
    assert set(out.inputs) == {layer.path for layer in projections}
    assert not any(layer.inputs for layer in projections)


def test_several_axes_of_a_projection_are_merged():
    class Attend(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral((2, 3), name="split")(x)
            return nn.DenseGeneral(5, axis=(-2, -1), name="join")(x)

    layers = linen(Attend, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    assert [layer.shape for layer in layers] == [(4, 6), (6, 5)]


def test_biases_of_attention_go_with_its_kernels(key):
    model, tokens = nn.MultiHeadAttention(2), jax.random.normal(key, (2, 5, 8))
    source = model.init(key, tokens)
    source = jax.tree.map(lambda leaf: leaf + 1, source)  # biases are drawn as zeros
    target = model.init(jax.random.fold_in(key, 1), tokens)
    networks = [tlv_jax.trace(model.apply, tree, tokens) for tree in (source, target)]
    layers = networks[0].layers
    assert all([name for name, _ in layer.vectors] == ["bias"] for layer in layers)
    method = tlv_jax.Method(match=tlv_jax.matching.ByIndex(), kinds=("dense", "bias"))
    new = tlv_jax.apply_transfer(tlv_jax.plan_transfer(*networks, method), key, *networks)
    chex.assert_trees_all_equal(new, source)


def test_a_bias_beside_kernels_without_a_name_belongs_to_none():
    def fn(params, x):
        return jnp.einsum("bd,dhk->bhk", x, params["a"]) + jnp.einsum("bd,dhk->bhk", x, params["b"])

    params = {"a": jnp.ones((4, 2, 3)), "b": jnp.ones((4, 2, 3)), "bias": jnp.ones((2, 3))}
    layers = tlv_jax.trace(fn, params, jnp.ones((1, 4))).layers
    assert [(layer.path, layer.vectors) for layer in layers] == [("a", ()), ("b", ())]
