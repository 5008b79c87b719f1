"""A fit into the same network of each library: the same numbers, and the library's own tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import LIBRARIES, Equinox, Linen, drawn
from trees import leaves, normal, random_variables

import tlv_jax
from tlv_jax.apply import put_kernel, put_vector, take_kernel, take_vector
from tlv_jax.layers.paths import with_leaves

IMAGES = normal(1, 16, 8, 8, 3)


def body(library, x, width=8):
    """A residual block with a depthwise conv, all with biases; a conv without a norm."""

    def unit(name, x, features, size, **options):
        x = library.conv(name, x, features, (size, size), **options)
        return library.batch_norm(f"{name}_norm", x)

    x = jax.nn.relu(unit("stem", x, width, 3))
    inner = jax.nn.relu(unit("expand", x, 2 * width, 1))
    inner = jax.nn.relu(unit("depthwise", inner, 2 * width, 3, groups=2 * width))
    x = x + unit("project", inner, width, 1)
    x = jax.nn.relu(library.conv("last", x, 12, (3, 3), strides=2))
    places = [axis for axis in range(x.ndim - 3, x.ndim) if axis != library.axis % x.ndim]
    return library.dense("head", x.mean(places), 5)


def network_of(library, tree, fn, images=IMAGES):
    """A function of one tree and images, traced."""
    images = np.moveaxis(images, -1, 1) if library.images.shape[1] == 3 else images
    return tlv_jax.trace(lambda tree, x: fn(*tree, x), tree, images[:1]), images


def linen_network(width, seed, dtype=jnp.float32):
    fn, *shapes = Linen.build(functools.partial(body, width=width))
    tree = random_variables(tuple(shapes), seed)
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    return network_of(Linen, tree, fn)[0]


def filled(network, other):
    """A tree of the network with the numbers of another one, layer by layer."""
    own, given = (
        {path: np.array(leaf) for path, leaf in leaves(each.params).items()}
        for each in (network, other)
    )
    for layer, like in zip(network.layers, other.layers, strict=True):
        put_kernel(layer, take_kernel(like, given), own)
        vectors = dict(like.vectors)
        for name, path in layer.vectors:
            if name == "count":  # how many batches the averages are of
                own[path] = np.full_like(own[path], 10**6)
            else:
                put_vector(layer, path, take_vector(like, vectors[name], given), own)
    new = {path: jnp.asarray(leaf) for path, leaf in own.items()}
    return with_leaves(network.params, leaves(network.params), new)


@pytest.fixture(scope="module")
def source():
    return linen_network(16, 0)


@pytest.fixture(scope="module")
def expected(source):
    """The network in Flax Linen, and its parameters after a fit."""
    network = linen_network(8, 1)
    return network, tlv_jax.fit(source, network, IMAGES)


def numbers_of(network, params):
    """Kernels `[*spatial, I, O]` and vectors by layer, in order of execution."""
    own = leaves(params)
    for layer in network.layers:
        vectors = {name: take_vector(layer, path, own) for name, path in layer.vectors}
        yield {"kernel": take_kernel(layer, own), **vectors}


IN_TESTS = [
    pytest.param(each, marks=() if each is Equinox else pytest.mark.slow) for each in LIBRARIES
]


@pytest.mark.parametrize("library", IN_TESTS, ids=lambda library: library.__name__)
def test_every_library_gets_the_same_numbers_in_its_own_tree(library, source, expected):
    fn, params, statistics = library.build(body)
    network, images = network_of(library, (drawn(params), drawn(statistics)), fn)
    network = tlv_jax.trace(network.fn, filled(network, expected[0]), images[:1])
    params = tlv_jax.fit(source, network, images, src_images=enlarged(IMAGES))
    assert jax.tree.structure(params) == jax.tree.structure(network.params)
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(network.params), strict=True):
        assert type(new) is type(old)
    for found, like in zip(numbers_of(network, params), numbers_of(*expected), strict=True):
        for name in found.keys() - {"count"}:
            size = np.abs(like[name]).max()
            np.testing.assert_allclose(found[name], like[name], rtol=1e-3, atol=1e-3 * size)


def enlarged(images):
    return jax.image.resize(images, (len(images), 16, 16, 3), "linear")


def outputs(network, params):
    logits, _ = jax.jit(network.fn)(params, IMAGES)
    return np.asarray(logits, np.float32)


def test_bfloat16_stays_and_is_near(source, expected):
    network = linen_network(8, 1, jnp.bfloat16)
    params = tlv_jax.fit(source, network, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    found, wanted = outputs(network, params), outputs(*expected)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
