"""Choose channels: by their variance, or at random.

A strategy says which ranks are chosen of channels in ascending order of variance, as
`(N, count) -> ranks [count]` in NumPy, for any `1 <= count <= N`; equal variances rank by position.
They are those of TLVFC's published code (`choose_candidate`), made total: any count and never a
channel twice. `random` needs no ranks; its order comes from `permutations`.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlv_jax.types import Array

__all__ = [
    "RANKS",
    "SELECTIONS",
    "argsort",
    "draw",
    "interleaved_ranks",
    "max_ranks",
    "min_ranks",
    "numbers_of_places",
    "permutations",
    "two_tailed_ranks",
]

# JAX moved it out of its experimental part in 0.8.
if hasattr(jax, "enable_x64"):
    _enable_x64: Any = jax.enable_x64
else:
    from jax.experimental import enable_x64 as _enable_x64  # type: ignore[attr-defined]

ROUNDS = 4  # of mixing; with fewer, pairs of places are not quite independent for N below 10


def max_ranks(size: int, count: int) -> np.ndarray:
    """The `count` largest. Published as `maxVar`."""
    return np.arange(size - count, size)


def min_ranks(size: int, count: int) -> np.ndarray:
    """The `count` smallest. Published as `minVar`."""
    del size
    return np.arange(count)


def interleaved_ranks(size: int, count: int) -> np.ndarray:
    """Every k-th, k = size // count.

    Published as `interLeaved`, which starts at rank 1 and so comes out one short where that leaves
    too few ranks (`count == size` among them); ours then starts at rank 0.
    """
    stride = size // count
    start = min(1, size - 1 - stride * (count - 1))
    return start + stride * np.arange(count)


def two_tailed_ranks(size: int, count: int) -> np.ndarray:
    """Half from either end.

    Published as `twoTailed`. An odd `count`, on which the published code fails, takes its extra one
    from the upper end.
    """
    lower = count // 2
    return np.concatenate([np.arange(lower), np.arange(size - (count - lower), size)])


RANKS: Mapping[str, Callable[[int, int], np.ndarray]] = MappingProxyType(
    {
        "max": max_ranks,
        "min": min_ranks,
        "interleaved": interleaved_ranks,
        "two_tailed": two_tailed_ranks,
    }
)
SELECTIONS = (*RANKS, "random")


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


def numbers_of_places(
    order: Array | None,
    drawn: Array | None,
    size: int,
    shape: tuple[int, int],
    *,
    remove: str,
    shuffle: bool,
) -> Array:
    """Gives each place of the target a number below `size`, for each column on its own.

    Where numbers are too few they take the places that `remove` says, the first number that of the
    lowest rank; other places get none. Where they are too many, chance decides.

    Args:
      order: the places' orders by variance, `[places, columns]` or `[places, 1]`. None where no
        choice is by variance.
      drawn: from `draw`.
      size: how many numbers there are.
      shape: `(places, columns)`.
      remove: one of `SELECTIONS`.
      shuffle: permute which number comes to which place.

    Returns:
      int32 `[places, columns]`, -1 for none.
    """
    places, columns = shape
    if drawn is not None:
        drawn = drawn[:, :columns]
    if size >= places:
        return lax.broadcasted_iota(jnp.int32, shape, 0) if drawn is None else drawn[:places]
    count = placed(size, remove)
    if order is None:
        assert drawn is not None  # the places are chosen by chance
        return jnp.where(drawn[:places] < count, drawn[:places], -1)
    table = np.full(places, -1, np.int32)
    table[RANKS[remove](places, count)] = np.arange(count)
    numbers = jnp.asarray(table)[jnp.argsort(jnp.broadcast_to(order, shape), axis=0)]
    if not shuffle:
        return numbers
    assert drawn is not None
    moved = jnp.take_along_axis(drawn, jnp.maximum(numbers, 0), axis=0)
    return jnp.where(numbers < 0, -1, moved)


def placed(size: int, remove: str) -> int:
    """How many of `size` numbers find a place in a larger target."""
    return size - size % 2 if remove == "two_tailed" and size > 1 else size


def draw(
    key: Array, size: int, places: int, columns: int, *, remove: str, shuffle: bool, salt: int
) -> Array | None:
    """Draws what `numbers_of_places` needs, at least `[N, columns]`; None if nothing is random.

    Args:
      key: consumed.
      size: how many numbers there are.
      places: how many places.
      columns: for how many filters.
      remove: one of `SELECTIONS`.
      shuffle: whether numbers are permuted.
      salt: tells this draw from others with the same key.
    """
    by_chance = size > places or (size < places and remove == "random")
    if not (shuffle or by_chance):
        return None
    if size < places:
        size = places if by_chance else placed(size, remove)
    return permutations(key, size, columns, salt=salt)


def permutations(key: Array, size: int, count: int, *, salt: int = 0) -> Array:
    """Draws a random permutation of `size` numbers for each of `count` columns.

    Nothing is sorted: each number is sent through a bijection that the key and the column choose,
    a few rounds of xor, odd multiplication and shift modulo a power of two, and rotation modulo
    `size`. In exchange not all of the `size!` permutations can occur of long columns; every number
    comes to every place, and every pair to every two places, equally often.

    Departs from the published code, whose random choice is `randint(0, size - 1)`, which draws with
    replacement and can never return the last channel.

    Args:
      key: consumed; typed, or raw words.
      size: N, above 0.
      count: M.
      salt: tells this draw from others with the same key.

    Returns:
      int32 `[N', M']` with `N' >= N` and `M' >= M`, powers of two so that sizes share one compiled
      program. `[:N, :M]` is meant.
    """
    shape = (_power_of_two(size), _power_of_two(count))
    return _permutations(key, np.uint32(size), np.uint32(salt), shape=shape)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


@functools.partial(jax.jit, static_argnames="shape")
def _permutations(key: Array, size: Array, salt: Array, *, shape: tuple[int, int]) -> Array:
    one, sixteen = jnp.uint32(1), jnp.uint32(16)
    bits = 31 - lax.clz(size)
    mask = (one << bits) - one
    half = jnp.maximum((bits + one) >> one, one)
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    first = _hash(words[0] ^ salt)
    columns = lax.iota(jnp.uint32, shape[1])[None] * jnp.uint32(0x9E3779B9)
    seeds = _hash(columns + first) ^ _hash(words[1] + first + jnp.uint32(0x7F4A7C15))
    numbers = lax.broadcasted_iota(jnp.uint32, shape, 0)
    for _ in range(ROUNDS):
        seeds = seeds * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7F4A7C15)
        others = (seeds ^ (seeds >> jnp.uint32(15))) * jnp.uint32(0x85EBCA6B)
        # Other bits of the two words for each use: of a short column few bits count.
        mixed = ((numbers ^ others) * ((seeds >> jnp.uint32(13)) | one)) & mask
        mixed = mixed ^ (mixed >> half)
        mixed = (mixed * ((others >> jnp.uint32(9)) | one)) & mask
        mixed = mixed ^ (mixed >> half)
        numbers = jnp.where(numbers <= mask, mixed, numbers)
        numbers += jnp.minimum(((others >> sixteen) * size) >> sixteen, size - one)
        numbers = jnp.where(numbers >= size, numbers - size, numbers)
    return numbers.astype(jnp.int32)


def _hash(bits: Array) -> Array:
    """The finalizer "lowbias32" (Chris Wellons, "Prospecting for Hash Functions", 2018).

    JAX's own generator takes longer to compile than all else here, and no more is asked than that
    channels are shuffled.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))
