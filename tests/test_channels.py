"""Channels that `trace` follows through reshapes and the like, whatever the size of the batch."""

import functools
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tlv_jax
from tlv_jax import models


def reads_behind(function, shape):
    """The channels of a convolution `[B, H, W, C]` that a dense layer behind `function` reads.

    Returns:
      What tracing says, as numbers of channels or -1; and what NumPy finds by moving the numbers
      themselves about, -1 where they are not the same for every position.
    """
    moved = np.asarray(function(np.broadcast_to(np.arange(shape[-1]), shape), np))
    rows = moved.reshape(-1, moved.shape[-1])
    expected = np.where((rows == rows[0]).all(0), rows[0], -1).tolist()

    def fn(params, x):
        return function(jnp.einsum("bhwi,io->bhwo", x, params["conv"]), jnp) @ params["dense"]

    params = {"conv": (3, shape[-1]), "dense": (moved.shape[-1], 2)}
    params = {name: jax.ShapeDtypeStruct(sizes, jnp.float32) for name, sizes in params.items()}
    images = jax.ShapeDtypeStruct((*shape[:-1], 3), jnp.float32)
    channels = tlv_jax.trace(fn, params, images).channels
    number = {label: n for n, label in enumerate(channels["conv"].writes)}
    return [number.get(label, -1) for label in channels["dense"].reads], expected


def windows(x, xp):
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return xp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(-1, 4, c)


def shuffled(x, xp):
    return xp.swapaxes(x.reshape(*x.shape[:-1], 2, -1), -1, -2).reshape(x.shape)


def unshuffled_pixels(x, xp):
    b, h, w, c = x.shape
    x = xp.transpose(x.reshape(b, h // 2, 2, w // 2, 2, c), (0, 1, 3, 5, 2, 4))
    return x.reshape(b, h // 2, w // 2, -1)


def joined(x, xp):
    left, right = xp.split(x, 2, axis=-1)
    return xp.concatenate([right, x, left[..., :1]], axis=-1)


@pytest.mark.parametrize(
    "function",
    [
        windows,
        shuffled,
        unshuffled_pixels,
        joined,
        lambda x, xp: x.reshape(len(x), -1),
        lambda x, xp: xp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1),
        lambda x, xp: x[:, 1:3, 2:5, 1:6],
        pytest.param(
            lambda x, xp: x[:, ::2, ::2, 1::2],
            marks=pytest.mark.skipif(
                jax.__version_info__ < (0, 8), reason="JAX gathers by computed indices: unknown"
            ),
        ),
        lambda x, xp: xp.stack([x, x], axis=-1).reshape(*x.shape[:3], -1),
        lambda x, xp: xp.transpose(x, (0, 3, 1, 2)).reshape(-1, *x.shape[1:3]),
        lambda x, xp: xp.concatenate([x, x[..., ::-1]], axis=1),
        lambda x, xp: x[:, [3, 1]][:, :, [5, 0, 2]],
        lambda x, xp: x[:, :, 3],
        lambda x, xp: x[np.arange(2), [1, 0], [2, 3]],
    ],
    ids=["windows", "shuffle", "unshuffle", "split and join", "flatten", "flatten channels first",
         "slice", "strided slice", "stack", "channels into the batch", "unlike along an axis",
         "rows", "column", "points"],
)  # fmt: skip
def test_channels_are_followed(function):
    found, expected = reads_behind(function, (2, 4, 6, 8))
    assert found == expected


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda x, xp: xp.take(x, xp.argsort(xp.ones(x.shape[-1])), axis=-1), False),
        (lambda x, xp: xp.sort(x, axis=-1), False),
        (lambda x, xp: xp.cumsum(x, axis=-1), False),
        (lambda x, xp: xp.sort(x, axis=1), True),
        (lambda x, xp: xp.cumsum(x, axis=1), True),
    ],
    ids=["permuted", "sorted", "summed", "sorted along rows", "summed along rows"],
)
def test_channels_that_values_or_neighbours_decide_are_unknown(function, known):
    found, _ = reads_behind(function, (2, 4, 6, 8))
    assert found == (list(range(8)) if known else [-1] * 8)


def sliced(x, xp, start, axis):
    # Older versions of JAX index by gathers, behind which channels are unknown.
    if xp is jnp:
        return jax.lax.slice_in_dim(x, start, None, axis=axis)
    return x[(slice(None),) * axis + (slice(start, None),)]


@st.composite
def moves(draw):
    """The shape of an activation, and a few reshapes, transposes and slices of it."""
    shape = size = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=4, max_size=4)))
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["reshape", "transpose", "slice"]))
        if kind == "transpose":
            order = draw(st.permutations(range(len(size))))
            steps.append(lambda x, xp, order=order: xp.transpose(x, order))
        elif kind == "slice":
            axis = draw(st.integers(0, len(size) - 1))
            start = draw(st.integers(0, size[axis] - 1))
            steps.append(functools.partial(sliced, start=start, axis=axis))
        else:
            left, sizes = math.prod(size), []
            while left > 1:
                sizes.append(draw(st.sampled_from([n for n in range(2, left + 1) if not left % n])))
                left //= sizes[-1]
            sizes.insert(draw(st.integers(0, len(sizes))), 1)
            steps.append(lambda x, xp, sizes=sizes: xp.reshape(x, sizes))
        size = steps[-1](np.zeros(size), np).shape
    return shape, steps


@settings(max_examples=60)
@given(moves())
def test_channels_are_followed_through_any_reshapes_transposes_and_slices(drawn):
    shape, steps = drawn

    def function(x, xp):
        for step in steps:
            x = step(x, xp)
        return x.reshape(1, -1) if x.ndim < 2 else x

    found, expected = reads_behind(function, shape)
    assert found == expected


def test_channels_that_change_along_several_axes_are_unknown():
    def function(x, xp):
        return xp.transpose(xp.reshape(xp.transpose(x, (0, 3, 2, 1)), (1, 4, 2, 3)), (0, 2, 3, 1))

    found, expected = reads_behind(function, (1, 2, 4, 3))
    assert found == expected == [0, -1, -1, 2]


def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def residual(params, x):
    x = conv(x, params["stem"])
    for kernel in params["blocks"]:
        x = jax.nn.relu(x + conv(x, kernel))
    return x.mean((1, 2)) @ params["head"]


def densely(params, x):
    x = conv(x, params["stem"])
    for kernel in params["blocks"]:
        x = jnp.concatenate([x, jax.nn.relu(conv(x[..., -32:], kernel))], axis=-1)
    return x.reshape(len(x), -1, x.shape[-1]).max(1)[:, :32] @ params["head"]


def windowed(params, x):
    x = conv(x, params["stem"])
    for kernel in params["blocks"]:
        parts = shuffled(windows(x, jnp), jnp)
        parts = parts.reshape(*x.shape[:1], x.shape[1] // 2, x.shape[2] // 2, 2, 2, -1)
        x = x + conv(jnp.transpose(parts, (0, 1, 3, 2, 4, 5)).reshape(x.shape), kernel)
    return x.mean((1, 2)) @ params["head"]


def traced(fn, params, batch):
    """The network of a function on 224 pixels, and the most memory that tracing took."""
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    tracemalloc.start()
    network = tlv_jax.trace(fn, params, images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return network, peak


def assert_traced_alike(fn, params):
    (one, _), (many, peak) = (traced(fn, params, batch) for batch in (1, 256))
    assert many.layers == one.layers
    assert many.channels == one.channels
    assert peak < 64e6  # the labels of one activation, written out, would take 3 GB


@pytest.mark.parametrize("fn", [residual, densely, windowed])
def test_a_large_batch_is_traced_like_one_image(fn):
    shapes = {"stem": (3, 3, 3, 32), "blocks": [(3, 3, 32, 32)] * 4, "head": (32, 5)}
    leaves = lambda sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    params = jax.tree.map(leaves, shapes, is_leaf=lambda node: isinstance(node, tuple))
    assert_traced_alike(fn, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "densenet121", "swin_t"])
def test_a_large_batch_is_traced_like_one_image_by_the_zoo(name):
    model = models.create(name, num_classes=10)
    assert_traced_alike(model.apply, models.abstract_variables(model))
