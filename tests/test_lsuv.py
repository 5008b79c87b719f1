"""Kernels that are scaled by what they write: the LSUV start."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import Equinox, Linen, compiled, drawn
from small_models import SMALL_MODELS
from trees import leaves, normal, small_fn, small_network

import tlv_jax
from tlv_jax.apply import take_kernel
from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.layers.activations import activations


def body(library, x):
    x = jax.nn.relu(library.batch_norm("norm", library.conv("stem", x, 8, (3, 3))))
    x = x + library.conv("depthwise", x, 8, (3, 3), groups=8)
    x = jax.nn.relu(library.conv("grouped", x, 32, (1, 1), groups=2))
    return library.dense("head", library.flatten(x), 5)


@pytest.fixture(scope="module", params=[Linen, Equinox], ids=lambda library: library.__name__)
def made(request):
    """A network of each library, the images, and its parameters after the initialization."""
    library = request.param
    fn, params, statistics = library.build(body)
    params, statistics = drawn(params), drawn(statistics)
    images = normal(0, 16, *library.images.shape[1:])
    network = tlv_jax.trace(fn, params, statistics, library.images)
    return network, (statistics, images), tlv_jax.lsuv(network, statistics, images)


def kernels_of(network):
    return [layer for layer in network.layers if layer.kind != "norm"]


def test_every_layer_writes_with_deviation_one(made):
    network, inputs, params = made
    paths = [layer.path for layer in kernels_of(network)]
    watch = functools.partial(activations, network.fn, paths=paths)
    for calls in compiled(watch, params, *inputs).values():
        assert np.std(calls[0].writes) == pytest.approx(1, rel=0.01)


def test_kernels_are_orthonormal_but_for_their_size(made):
    network, _, params = made
    for layer in kernels_of(network):
        kernel = np.asarray(take_kernel(layer, leaves(params)))
        for group in np.split(kernel.reshape(-1, layer.shape[-1]), layer.groups, axis=1):
            rows, columns = group.shape
            products = group.T @ group if columns <= rows else group @ group.T
            size = np.mean(np.diagonal(products))
            np.testing.assert_allclose(products / size, np.eye(len(products)), atol=1e-5)


def test_all_but_the_kernels_stays(made):
    network, _, params = made
    chex.assert_trees_all_equal_structs(params, network.params)
    weights = {layer.weight for layer in kernels_of(network)}
    for path, leaf in leaves(network.params).items():
        new = leaves(params)[path]
        assert (new.shape, new.dtype, type(new)) == (leaf.shape, leaf.dtype, type(leaf))
        assert np.array_equal(new, leaf) == (path not in weights), path


def test_the_key_decides_the_kernels():
    network, images = small_network(0, 8, 16), normal(1, 16, 8, 8, 3)
    first, again, other = (
        tlv_jax.lsuv(network, images, key=jax.random.key(seed)) for seed in (3, 3, 4)
    )
    chex.assert_trees_all_equal(first, again)
    assert not np.allclose(first["stem"]["kernel"], other["stem"]["kernel"])
    assert not np.allclose(
        first["block"]["kernel"][0, 0, :3, 0], first["stem"]["kernel"][0, 0, :, 0]
    )


def test_a_layer_that_runs_twice_is_scaled_for_its_first_call_and_those_of_a_scan_for_their_own():
    def fn(params, x):
        def step(x, w):
            x = jax.nn.relu(x @ w)
            return x, x * x

        x = jnp.tanh(x @ params["twice"]) @ params["twice"]
        x, squares = jax.lax.scan(step, x, params["stack"])
        return (x + squares.sum(0)) @ params["head"]  # which are known after a pass only

    params = {"twice": normal(0, 6, 6), "stack": normal(1, 3, 6, 6), "head": normal(2, 6, 4)}
    images = normal(2, 32, 6)
    network = tlv_jax.trace(fn, params, images[:1])
    new = tlv_jax.lsuv(network, images)
    paths = ["twice", "stack[0]", "stack[1]", "stack[2]", "head"]
    calls = activations(fn, new, images, paths=paths)
    for first, *_ in calls.values():
        assert np.std(first.writes) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "inputs: expected images, got no array of finite"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), "inputs: expected images, got no array"),
        (np.where(np.arange(8)[:, None] == 1, np.inf, normal(0, 4, 8, 8, 3)), "'stem' writes with"),
    ],
    ids=["black", "nan", "inf"],
)
def test_images_that_say_nothing_are_refused(images, message):
    with pytest.raises(OptionError, match=message):
        tlv_jax.lsuv(small_network(0, 8, 16), images)


def test_a_layer_that_cannot_be_scaled_is_refused_by_its_path():
    def dead(params, x):
        return jax.nn.relu(-jnp.abs(x @ params["first"])) @ params["second"]

    def rescaled(params, x):
        return x @ (params["first"] / jnp.std(params["first"]))

    params = {"first": normal(0, 4, 4), "second": normal(1, 4, 4)}
    images = normal(2, 8, 4)
    with pytest.raises(OptionError, match=r"'second' writes with standard deviation 0\.0"):
        tlv_jax.lsuv(tlv_jax.trace(dead, params, images), images)
    with pytest.raises(OptionError, match=r"'first' writes with .* after 10 passes"):
        tlv_jax.lsuv(tlv_jax.trace(rescaled, params, images), images)


def test_networks_without_a_function_or_values_are_refused():
    network, images = small_network(0, 8, 16), normal(1, 4, 8, 8, 3)
    shapes = jax.eval_shape(lambda: network.params)
    with pytest.raises(ParameterTreeError, match="ShapeDtypeStruct"):
        tlv_jax.lsuv(tlv_jax.trace(small_fn, shapes, images), images)
    with pytest.raises(OptionError, match="network: expected a traced network, got a bare tree"):
        tlv_jax.lsuv(network.params, images)


# The others have dense layers of 4096 units, which take minutes to make orthonormal.
LIGHT = [name for name in SMALL_MODELS if name not in ("alexnet", "vgg11_bn")]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_every_family_of_the_zoo_can_be_initialized(name):
    model = SMALL_MODELS[name]
    side = getattr(model, "image_size", 96 if name == "inception_v3" else 64)
    images = normal(0, 8, side, side, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    network = tlv_jax.trace(model.apply, variables, images[:1])
    params = tlv_jax.lsuv(network, images)
    paths = [layer.path for layer in kernels_of(network)]
    calls = jax.jit(functools.partial(activations, model.apply, paths=paths))(params, images)
    for first, *_ in calls.values():
        assert np.std(first.writes) == pytest.approx(1, rel=0.02)
