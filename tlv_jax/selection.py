"""Choose channels by their variance.

Every strategy has the form `(key, variance [..., N], count) -> indices [..., count]`: along the
last axis `count` distinct positions, for any `1 <= count <= N`. All rank with a stable sort, so
that equal variances are taken in the order of their positions. `key` is consumed by `select_random`
alone; the others take it so that all can stand in each other's place.

The strategies are those of TLVFC's published code (`choose_candidate`), made total: any count and
never a channel twice.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tlv_jax.types import Array

__all__ = [
    "SELECTIONS",
    "Select",
    "argsort",
    "random_order",
    "select_interleaved",
    "select_max",
    "select_min",
    "select_random",
    "select_two_tailed",
]

# JAX moved it out of its experimental part in 0.8.
if hasattr(jax, "enable_x64"):
    _enable_x64: Any = jax.enable_x64
else:
    from jax.experimental import enable_x64 as _enable_x64  # type: ignore[attr-defined]

Select = Callable[[Array, Array, int], Array]


def select_max(key: Array, variance: Array, count: int) -> Array:
    """Takes the `count` largest, in ascending order. `[..., N] -> [..., count]`.

    Published as `maxVar`.
    """
    del key
    return argsort(variance)[..., variance.shape[-1] - count :]


def select_min(key: Array, variance: Array, count: int) -> Array:
    """Takes the `count` smallest, in ascending order. `[..., N] -> [..., count]`.

    Published as `minVar`.
    """
    del key
    return argsort(variance)[..., :count]


def select_interleaved(key: Array, variance: Array, count: int) -> Array:
    """Takes every k-th in ascending order, k = N // count. `[..., N] -> [..., count]`.

    Published as `interLeaved`, which starts at rank 1 and so comes out one short where that leaves
    too few ranks (`count == N` among them); ours then starts at rank 0.
    """
    del key
    size = variance.shape[-1]
    stride = size // count
    start = min(1, size - 1 - stride * (count - 1))
    return argsort(variance)[..., start::stride][..., :count]


def select_two_tailed(key: Array, variance: Array, count: int) -> Array:
    """Takes half from either end, in ascending order. `[..., N] -> [..., count]`.

    Published as `twoTailed`. An odd `count`, on which the published code fails, takes its extra one
    from the upper end.
    """
    del key
    order = argsort(variance)
    lower = count // 2
    upper = order[..., variance.shape[-1] - (count - lower) :]
    return jnp.concatenate([order[..., :lower], upper], axis=-1)


def select_random(key: Array, variance: Array, count: int) -> Array:
    """Draws `count` without replacement, in random order. `[..., N] -> [..., count]`.

    Published as `random`. Departs from the published code, whose `randint(0, N - 1)` draws with
    replacement and can never return the last channel.
    """
    return random_order(key, variance.shape)[..., :count]


def argsort(values: Array) -> Array:
    """The stable order of the last axis, as `jnp.argsort`; int32. `[..., N] -> [..., N]`.

    Each value and its position are packed into one integer: XLA sorts integers on a CPU several
    times faster than it sorts floats along with their positions.
    """
    values = values.astype(jnp.float32)
    values = jnp.where(values == 0, 0.0, values)  # -0.0 is equal, and must be in its bits
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(values), jnp.nan, values), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    with _enable_x64(True):
        positions = lax.broadcasted_iota(jnp.int64, values.shape, values.ndim - 1)
        packed = lax.shift_left(ordered.astype(jnp.int64), jnp.int64(32)) | positions
        packed = lax.sort(packed, dimension=values.ndim - 1, is_stable=False)
        return (packed & jnp.int64(0xFFFFFFFF)).astype(jnp.int32)


def random_order(key: Array, shape: tuple[int, ...]) -> Array:
    """Permutations of the last axis, int32.

    Random numbers that hold their positions in their lowest bits are sorted. Two of them tie with
    a probability of some 1e-6 a pair for a thousand channels.
    """
    mask = (1 << (shape[-1] - 1).bit_length()) - 1
    noise = _noise(key, shape) >> jnp.uint32(1)
    positions = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    packed = (noise.astype(jnp.int32) & ~mask) | positions
    return lax.sort(packed, is_stable=False) & mask


SELECTIONS: Mapping[str, Select] = MappingProxyType(
    {
        "max": select_max,
        "min": select_min,
        "interleaved": select_interleaved,
        "two_tailed": select_two_tailed,
        "random": select_random,
    }
)


def _noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Random bits for an order, uint32: a hash of each element's number and the key.

    The finalizer is "lowbias32" (Chris Wellons, "Prospecting for Hash Functions", 2018), once for
    each word of the key. JAX's own generator takes a third of a transfer's whole time of
    compilation, and no more is asked of this noise than that it shuffles channels.
    """
    first, second = jax.random.key_data(key).astype(jnp.uint32)[:2]
    bits = lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B9)
    for word in (first, second):
        bits = bits ^ word
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
        bits = bits ^ (bits >> jnp.uint32(16))
    return bits.reshape(shape)
