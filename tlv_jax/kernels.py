"""Fit one kernel into another's shape, an axis at a time.

Shapes: kernels are `[*spatial, I, O]`, spatial axes first, then the input channels `I` of one
filter and the output channels `O`. A prime marks the target's size: `I'`, `O'`. A filter is one
output channel, `[*spatial, I]`. Variances are those of a population (divided by the count), taken
in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tlv_jax.selection import Select
from tlv_jax.types import Array

__all__ = [
    "chosen_inputs",
    "chosen_outputs",
    "keep_inputs",
    "place_inputs",
    "resize_spatial",
    "shuffle_channels",
]


def chosen_outputs(key: Array, kernel: Array, count: int, *, select: Select) -> Array:
    """Chooses `count` filters by their weights' variance. `[*spatial, I, O] -> [count]`."""
    variance = jnp.var(kernel.astype(jnp.float32), axis=range(kernel.ndim - 1))
    return select(key, variance, count)


def chosen_inputs(key: Array, filter_: Array, count: int, *, select: Select) -> Array:
    """Chooses `count` inputs of one filter by their pixels' variance. `[*spatial, I] -> [count]`.

    A 1x1 kernel has one pixel an input, and so no variance: the choice is then a tie, which goes by
    position.
    """
    variance = jnp.var(filter_.astype(jnp.float32), axis=range(filter_.ndim - 1))
    return select(key, variance, count)


def keep_inputs(key: Array, kernel: Array, count: int, *, select: Select) -> Array:
    """Keeps inputs for each filter on its own. `[*spatial, I, O] -> [*spatial, count, O]`."""

    def keep(key: Array, filter_: Array) -> Array:
        return filter_[..., chosen_inputs(key, filter_, count, select=select)]

    keys = jax.random.split(key, kernel.shape[-1])
    return jax.vmap(keep, in_axes=(0, -1), out_axes=-1)(keys, kernel)


def place_inputs(key: Array, target: Array, source: Array, *, select: Select) -> Array:
    """Puts the source's inputs over chosen inputs of the target, filter by filter.

    Args:
      key: consumed.
      target: `[*spatial, I', O]`; inputs that are not chosen keep its values.
      source: `[*spatial, I, O]` with `I <= I'`.
      select: chooses, by the variance of the target's own inputs, which of them give way.

    Returns:
      `[*spatial, I', O]`.
    """

    def place(key: Array, target: Array, source: Array) -> Array:
        slots = chosen_inputs(key, target, source.shape[-1], select=select)
        return target.at[..., slots].set(source, unique_indices=True)

    keys = jax.random.split(key, source.shape[-1])
    return jax.vmap(place, in_axes=(0, -1, -1), out_axes=-1)(keys, target, source)


def shuffle_channels(key: Array, kernel: Array) -> Array:
    """Permutes the outputs, then the inputs of each filter on its own. Shape unchanged."""
    key_outputs, key_inputs = jax.random.split(key)
    kernel = jax.random.permutation(key_outputs, kernel, axis=-1)
    permute = functools.partial(jax.random.permutation, axis=-1)
    keys = jax.random.split(key_inputs, kernel.shape[-1])
    return jax.vmap(permute, in_axes=(0, -1), out_axes=-1)(keys, kernel)


def resize_spatial(
    key: Array, kernel: Array, spatial: tuple[int, ...], *, pad: str, pool: str
) -> Array:
    """Pools or pads every spatial axis to its target size. `[*S, I, O] -> [*spatial, I, O]`.

    An axis of size n shrinks to m by pooling windows of n - m + 1 at stride 1, and grows by a
    border around the kernel, whose extra row, if m - n is odd, comes last. The published code knows
    square kernels that grow by an even number only.

    Args:
      key: consumed; drawn from with `pad="init"` alone.
      kernel: the source kernel. With fewer spatial axes than the target it is taken to have size 1
        along the missing, leading ones; with more, the superfluous leading ones are pooled away.
      spatial: the target's spatial sizes.
      pad: `zero`, or `init`: a border from He's normal distribution, by the fan-out.
      pool: `avg` or `max`.
    """
    missing = len(spatial) - (kernel.ndim - 2)
    kernel = kernel.reshape((1,) * missing + kernel.shape)
    sizes = (1,) * -missing + spatial
    kernel = _pool(kernel, sizes, pool)
    return _pad(key, kernel, sizes, pad).reshape(spatial + kernel.shape[-2:])


def _pool(kernel: Array, sizes: tuple[int, ...], pool: str) -> Array:
    """Shrinks the axes that are larger than `sizes`, leaves the others."""
    shrunk = [max(n - m, 0) + 1 for n, m in zip(kernel.shape[:-2], sizes, strict=True)]
    window = (*shrunk, 1, 1)
    strides = (1,) * kernel.ndim
    if math.prod(window) == 1:
        return kernel
    if pool == "max":
        return lax.reduce_window(kernel, -jnp.inf, lax.max, window, strides, "VALID")
    total = lax.reduce_window(kernel, 0.0, lax.add, window, strides, "VALID")
    return total / math.prod(window)


def _pad(key: Array, kernel: Array, sizes: tuple[int, ...], pad: str) -> Array:
    """Grows the axes that are smaller than `sizes`; none is larger."""
    if kernel.shape[:-2] == sizes:
        return kernel
    shape = sizes + kernel.shape[-2:]
    before = tuple((m - n) // 2 for n, m in zip(kernel.shape, shape, strict=True))
    if pad == "zero":
        border = jnp.zeros(shape, kernel.dtype)
    else:
        fan_out = kernel.shape[-1] * math.prod(sizes)
        border = math.sqrt(2 / fan_out) * jax.random.normal(key, shape, kernel.dtype)
    return lax.dynamic_update_slice(border, kernel, before)
