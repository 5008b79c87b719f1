"""What is between the layers of a function: norms, activation functions, and values that end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import LIBRARIES, NHWC, compiled, drawn
from trees import normal

import tlv_jax
from tlv_jax.layers.activations import activations
from tlv_jax.layers.interventions import intervene


def body(library, x, watch=False):
    stem = library.conv("stem", x, 4, (3, 3))
    normed = library.batch_norm("norm", stem)
    active = jax.nn.silu(normed)
    deep = library.conv("deep", active, 6, (3, 3), strides=2, groups=2)
    head = library.dense("head", library.flatten(jax.nn.relu(library.pool(deep))), 5)
    return [normed, active, deep] if watch else head


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.__name__)
def given(request):
    """A library, a function of its modules, and arguments; also a function that watches inside."""
    fn, params, statistics = request.param.build(body)
    whole, _, _ = request.param.build(functools.partial(body, watch=True))
    images = jnp.asarray(normal(0, *request.param.images.shape))
    variables = drawn(params), drawn(statistics)
    both, watched = ((lambda each, images, fn=fn: fn(*each, images)) for fn in (fn, whole))
    return request.param, both, watched, (variables, images)


def kernels_of(fn, arguments):
    return [layer.path for layer in tlv_jax.trace(fn, *arguments).layers if layer.kind != "norm"]


def test_a_layer_hands_on_what_it_writes_after_its_norm_and_activation_function(given):
    _, fn, whole, arguments = given
    first, second = paths = kernels_of(fn, arguments)[:2]
    watch = functools.partial(activations, fn, paths=paths)
    calls = compiled(watch, *arguments)
    found = compiled(whole, *arguments)
    normed, active, deep = found if isinstance(found, list) else found[0]
    near(calls[first][0].normed, normed)
    near(calls[first][0].hands_on, active)
    # A pooling is not the layer's own, nor is what follows it.
    near(calls[second][0].normed, deep)
    near(calls[second][0].hands_on, deep)


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_what_a_norm_writes_is_replaced(given):
    library, fn, _, arguments = given
    network = tlv_jax.trace(fn, *arguments)
    (norm,) = (layer.path for layer in network.layers if layer.kind == "norm")
    seen, read = {}, {}

    def see(path, call):
        read[path] = call.reads
        return call.writes

    def see_norm(path, call):
        seen[path] = call
        return jnp.full_like(call.writes, 2.0)

    intervene(fn, *arguments, paths=kernels_of(fn, arguments), see=see, see_norm=see_norm)
    assert list(seen) == [norm]
    assert seen[norm].axis == (3 if library.images is NHWC else 1)
    assert seen[norm].epsilon == pytest.approx(1e-5, rel=1e-3)
    second = list(read)[1]
    np.testing.assert_allclose(read[second], jax.nn.silu(2.0), rtol=1e-6)


def test_a_conv_is_computed_with_another_kernel(given):
    _, fn, _, arguments = given
    written = {}

    def see(path, call):
        written[path] = call.compute(2 * call.kernel) / 2, call.writes
        return call.writes

    intervene(fn, *arguments, paths=kernels_of(fn, arguments), see=see)
    for halved, expected in written.values():
        near(halved, expected)


def bends(library, x):
    first = library.conv("first", x, 4, (3, 3))
    linear = library.conv("linear", library.batch_norm("norm", first), 4, (1, 1))
    normed = library.conv("normed", library.layer_norm("layer_norm", linear), 4, (1, 1))
    grouped = library.conv("grouped", library.group_norm("group_norm", normed), 4, (1, 1))
    gate = jax.nn.sigmoid(library.conv("gate", grouped.mean((-2, -3), keepdims=True), 1, (1, 1)))
    gated = library.conv("gated", grouped * gate, 4, (1, 1))
    rest = library.conv("rest", grouped + jax.nn.gelu(gated), 4, (1, 1))
    clipped = library.conv("clipped", jnp.clip(rest, 0, 6), 4, (1, 1))
    return library.dense("head", library.flatten(library.pool(clipped)), 5)


def test_activation_functions_are_told_from_norms_and_poolings():
    library = LIBRARIES[0]
    fn, params, statistics = library.build(bends)
    network = tlv_jax.trace(fn, params, statistics, library.images)
    activated = [path for path, labels in network.channels.items() if labels.activated]
    assert [path.rpartition("/")[2] for path in activated] == ["rest", "clipped"]


def test_values_that_are_not_read_again_are_freed():
    kernels = [jnp.full((3, 3, 4, 4), 0.1) for _ in range(20)]
    images = jnp.ones((4, 37, 37, 4))

    def fn(kernels, images):
        x = images
        for kernel in kernels:
            options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options))
        return x

    alive = []

    def see(path, call):
        alive.append(sum(array.shape == images.shape for array in jax.live_arrays()))
        return call.writes

    intervene(fn, kernels, images, paths=[str(number) for number in range(20)], see=see)
    assert max(alive) < 6
