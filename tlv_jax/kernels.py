"""Resize kernels, rank their channels, and gather them into another shape.

Shapes: kernels are `[*spatial, I, O]`, spatial axes first, then the input channels `I` of one
filter and the output channels `O`. A prime marks the target's size: `I'`, `O'`. A filter is one
output channel, `[*spatial, I]`. Variances are those of a population (divided by the count), taken
in float32, over the kernel with the zeros that may surround it: `padded` is the number of its
pixels then.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlv_jax.types import Array

__all__ = [
    "filter_variance",
    "gather_channels",
    "input_variance",
    "pad_spatial",
    "pool_spatial",
]


def pool_spatial(kernel: Array, spatial: tuple[int, ...], *, pool: str) -> Array:
    """Shrinks every spatial axis that is too large, by windows of n - m + 1 at stride 1.

    Args:
      kernel: `[*S, I, O]`. With fewer spatial axes than the target it is taken to have size 1 along
        the missing, leading ones; with more, the superfluous leading ones are pooled away.
      spatial: the target's spatial sizes.
      pool: `avg` or `max`.

    Returns:
      `[*s, I, O]` of the target's rank, no axis larger than the target's.
    """
    missing = len(spatial) - (kernel.ndim - 2)
    kernel = kernel.reshape((1,) * missing + kernel.shape)
    sizes = (1,) * -missing + spatial
    for axis, size in enumerate(sizes):
        window = kernel.shape[axis] - size + 1
        if window > 1:
            starts = range(window)
            slices = [lax.slice_in_dim(kernel, i, i + size, axis=axis) for i in starts]
            # On a CPU, `lax.reduce_window` takes some twenty times as long as a few such slices.
            if pool == "max":
                kernel = functools.reduce(jnp.maximum, slices)
            else:
                kernel = functools.reduce(operator.add, slices) / window
    return kernel.reshape(kernel.shape[-2 - len(spatial) :])


def pad_spatial(
    key: Array | None, kernel: Array, spatial: tuple[int, ...], fan_out: int | None
) -> Array:
    """Surrounds a kernel up to its target size; an odd extra row comes last.

    The published code knows square kernels that grow by an even number only.

    Args:
      key: consumed; not asked for without a `fan_out`.
      kernel: `[*s, I, O]`.
      spatial: the target's spatial sizes, none smaller.
      fan_out: of He's normal distribution for the border; zeros if None.
    """
    if kernel.shape[:-2] == spatial:
        return kernel
    shape = spatial + kernel.shape[-2:]
    before = [(m - n) // 2 for n, m in zip(kernel.shape, shape, strict=True)]
    if fan_out is None:
        after = [m - n - b for n, m, b in zip(kernel.shape, shape, before, strict=True)]
        return jnp.pad(kernel, list(zip(before, after, strict=True)))
    assert key is not None
    border = math.sqrt(2 / fan_out) * jax.random.normal(key, shape, kernel.dtype)
    return lax.dynamic_update_slice(border, kernel, before)


def filter_variance(kernel: Array, padded: int) -> Array:
    """The variance of each filter's weights. `[*spatial, I, O] -> float32 [O]`."""
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    size, count = len(weights), padded * kernel.shape[-2]
    # Without the zeros first: a kernel that is measured among several numbers of them is read once.
    mean = weights.sum(0) / size
    squares = jnp.square(weights - mean[None]).sum(0)
    with_zeros = mean * (size / count)
    zeros = (count - size) * with_zeros**2
    return (squares + size * (mean - with_zeros) ** 2 + zeros) / count


def input_variance(kernel: Array, padded: int) -> Array:
    """The variance of the pixels of each input of each filter. `[*spatial, I, O] -> [I, O]`.

    A kernel of one pixel has one weight for an input and a filter, and so no variance: its inputs
    are ranked by the variance of their weights over all filters, the same for each, `[I, 1]`. In
    the published code this is a tie.
    """
    *spatial, _, _ = kernel.shape
    pixels = [kernel[index].astype(jnp.float32) for index in np.ndindex(*spatial)]
    if padded == 1:
        return jnp.var(pixels[0], axis=1)[:, None]
    # Added up slice by slice: XLA reduces over leading axes a hundred times slower on a CPU.
    mean = functools.reduce(operator.add, pixels) / padded
    squares = functools.reduce(operator.add, [(pixel - mean) ** 2 for pixel in pixels])
    return (squares + (padded - len(pixels)) * mean**2) / padded


def gather_channels(kernel: Array, inputs: Array, filters: Array) -> Array:
    """Takes for each place the pixels of one input of one filter.

    Args:
      kernel: `[*spatial, I, O]`.
      inputs: the input of each place, `[I', O']`; unsigned, so that none is taken for one counted
        from the end.
      filters: and which filter's, likewise, `[I', O']` or one that broadcasts to it.

    Returns:
      `[*spatial, I', O']`.
    """
    *spatial, size, outputs = kernel.shape
    places = inputs * np.uint32(outputs) + filters
    taken = kernel.reshape(math.prod(spatial), size * outputs).at[:, places]
    return taken.get(mode="promise_in_bounds").reshape(*spatial, *places.shape)
