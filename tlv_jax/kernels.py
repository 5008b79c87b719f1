"""Fit one kernel into another's shape, an axis at a time.

Shapes: kernels are `[*spatial, I, O]`, spatial axes first, then the input channels `I` of one
filter and the output channels `O`. A prime marks the target's size: `I'`, `O'`. A filter is one
output channel, `[*spatial, I]`. Variances are those of a population (divided by the count), taken
in float32.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from tlv_jax.selection import Select, random_order
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


def chosen_inputs(key: Array, kernel: Array, count: int, *, select: Select) -> Array:
    """Chooses inputs of each filter by their pixels' variance. `[*spatial, I, O] -> [count, O]`.

    A kernel of one pixel has one weight for an input and a filter, and so no variance: its inputs
    are ranked by the variance of their weights over all filters, the same for each. In the
    published code this is a tie.
    """
    wide = kernel.astype(jnp.float32)
    if math.prod(kernel.shape[:-2]) == 1:
        variance = jnp.var(wide, axis=(*range(kernel.ndim - 2), kernel.ndim - 1))
        chosen = select(key, variance, count)
        return jnp.broadcast_to(chosen[:, None], (count, kernel.shape[-1]))
    variance = jnp.var(wide, axis=range(kernel.ndim - 2))
    return select(key, variance.T, count).T


def keep_inputs(key: Array, kernel: Array, count: int, *, select: Select) -> Array:
    """Keeps inputs for each filter on its own. `[*spatial, I, O] -> [*spatial, count, O]`."""
    return _take_inputs(kernel, chosen_inputs(key, kernel, count, select=select))


def place_inputs(key: Array, target: Array, source: Array, *, select: Select) -> Array:
    """Puts the source's inputs over chosen inputs of the target, for each filter on its own.

    Args:
      key: consumed.
      target: `[*spatial, I', O]`; inputs that are not chosen keep its values.
      source: `[*spatial, I, O]` with `I <= I'`.
      select: chooses, by the variance of the target's own inputs, which of them give way.

    Returns:
      `[*spatial, I', O]`.
    """
    slots = chosen_inputs(key, target, source.shape[-2], select=select)
    filters = jnp.arange(target.shape[-1])[None]
    return target.at[..., slots, filters].set(source, unique_indices=True)


def shuffle_channels(key: Array, kernel: Array) -> Array:
    """Permutes the outputs, and the inputs of each filter on its own. Shape unchanged."""
    inputs, outputs = kernel.shape[-2:]
    key_outputs, key_inputs = jax.random.split(key)
    kernel = kernel[..., random_order(key_outputs, (outputs,))]
    return _take_inputs(kernel, random_order(key_inputs, (outputs, inputs)).T)


def _take_inputs(kernel: Array, chosen: Array) -> Array:
    """Takes the inputs `chosen [count, O]` of each filter. `-> [*spatial, count, O]`."""
    chosen = chosen.reshape((1,) * (kernel.ndim - 2) + chosen.shape)
    return jnp.take_along_axis(kernel, chosen, axis=-2)


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
