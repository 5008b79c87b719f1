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
from jax.core import Tracer

from tlv_jax.types import Array

__all__ = [
    "RANKS",
    "SELECTIONS",
    "argsort",
    "draw",
    "in_memory",
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


def argsort(values: Array | np.ndarray) -> Array | np.ndarray:
    """The stable order of the last axis, as `jnp.argsort`; int32. `[..., N] -> [..., N]`.

    Each value and its position are packed into one integer, which sorts several times faster on a
    CPU than a float along with its position. Values that lie in a CPU's memory are sorted by NumPy,
    and the answer is NumPy's: XLA compares element by element, NumPy many at once.
    """
    values = in_memory(values)
    if isinstance(values, np.ndarray):
        return _argsort_by_numpy(values.astype(np.float32, copy=False))
    return _argsort_by_xla(values)


def in_memory(array: Array | np.ndarray) -> Array | np.ndarray:
    """As NumPy's, if it lies in a CPU's memory, without a copy; others, and traced ones, as is."""
    if isinstance(array, (np.ndarray, Tracer)) or any(d.platform != "cpu" for d in array.devices()):
        return array
    return np.asarray(array)


def _argsort_by_numpy(values: np.ndarray) -> np.ndarray:
    values = values + np.float32(0)  # -0.0 is equal to 0.0, and must be in its bits
    ordered = values.view(np.int32)
    if not (values >= 0).all():
        values[np.isnan(values)] = np.nan
        ordered = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    packed = ordered.astype(np.int64) << 32
    packed |= np.arange(values.shape[-1])
    packed.sort(axis=-1)
    return packed.astype(np.int32)  # of each integer the lower half, its position


@jax.jit
def _argsort_by_xla(values: Array) -> Array:
    values = values.astype(jnp.float32)
    values = jnp.where(values == 0, 0.0, values)
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(values), jnp.nan, values), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    with _enable_x64(True):
        positions = lax.broadcasted_iota(jnp.int64, values.shape, values.ndim - 1)
        packed = lax.shift_left(ordered.astype(jnp.int64), jnp.int64(32)) | positions
        packed = lax.sort(packed, dimension=values.ndim - 1, is_stable=False)
        return (packed & jnp.int64(0xFFFFFFFF)).astype(jnp.int32)


def numbers_of_places(
    order: Array | np.ndarray | None,
    drawn: Array | np.ndarray | None,
    size: int,
    shape: tuple[int, int],
    *,
    remove: str,
    shuffle: bool,
) -> Array | np.ndarray:
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
      int32 `[places, columns]`, -1 for none; NumPy's if nothing else was given.
    """
    places, columns = shape
    if size >= places and drawn is None:
        return np.broadcast_to(np.arange(places, dtype=np.int32)[:, None], shape)
    xp: Any = jnp if isinstance(order, Array) or isinstance(drawn, Array) else np
    if drawn is not None:
        drawn = drawn[:, :columns].astype(np.int32)
        if size >= places:
            return drawn[:places]
    count = placed(size, remove)
    if order is None:
        assert drawn is not None  # the places are chosen by chance
        return xp.where(drawn[:places] < count, drawn[:places], np.int32(-1))
    table = np.full(places, -1, np.int32)
    table[RANKS[remove](places, count)] = np.arange(count)
    numbers = xp.asarray(table)[xp.argsort(xp.broadcast_to(order, shape), axis=0)]
    if not shuffle:
        return numbers
    assert drawn is not None
    moved = xp.take_along_axis(drawn, xp.maximum(numbers, 0), axis=0)
    return xp.where(numbers < 0, np.int32(-1), moved)


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
      uint16, or uint32 where N is above 32,768, `[N', M']` with `N' >= N` and `M' >= M`, powers of
      two, none of them small, so that many sizes share one compiled program. `[:N, :M]` is meant.
    """
    shape = (2048, 1) if count == 1 and size <= 2048 else (_rounded(size), _rounded(count))
    # One array: each that is given to a program takes its time.
    if isinstance(key, np.ndarray):
        return _permutations(np.array([key[0], key[1], size, salt], np.uint32), shape=shape)
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    return _permutations(jnp.concatenate([words, np.array([size, salt], np.uint32)]), shape=shape)


def _rounded(size: int) -> int:
    return 1 << max((size - 1).bit_length(), 6)


@functools.partial(jax.jit, static_argnames="shape")
def _permutations(seed: Array, *, shape: tuple[int, int]) -> Array:
    """As `permutations`, of two words of the key, the size and the salt."""
    rows, columns = shape
    size = seed[2]
    # The lower bits are the same in either, and a CPU computes twice as many of half the width.
    dtype = jnp.uint16 if rows <= 1 << 15 else jnp.uint32
    words = _round_words(seed, columns).astype(dtype)
    bits = 31 - lax.clz(size)
    mask = ((jnp.uint32(1) << bits) - jnp.uint32(1)).astype(dtype)
    half = jnp.maximum((bits + jnp.uint32(1)) >> jnp.uint32(1), jnp.uint32(1)).astype(dtype)
    numbers = lax.broadcasted_iota(dtype, shape, 0)
    for flipped, factor, other_factor, rotation in words:
        mixed = ((numbers ^ flipped) * factor) & mask
        mixed = mixed ^ (mixed >> half)
        mixed = (mixed * other_factor) & mask
        mixed = mixed ^ (mixed >> half)
        numbers = jnp.where(numbers <= mask, mixed, numbers) + rotation
        numbers = jnp.minimum(numbers, numbers - size.astype(dtype))  # modulo: below 0 is large
    return numbers


def _round_words(seed: Array, columns: int) -> Array:
    """What each column is mixed with in each round. `uint32 [ROUNDS, 4, 1, columns]`."""
    one, sixteen, increment = jnp.uint32(1), jnp.uint32(16), jnp.uint32(0x7F4A7C15)
    word, other_word, size, salt = seed
    first = _hash(word ^ salt)
    numbers = lax.iota(jnp.uint32, columns)[None] * jnp.uint32(0x9E3779B9)
    seeds = [_hash(numbers + first) ^ _hash(other_word + first + increment)]
    for _ in range(ROUNDS):
        seeds.append(seeds[-1] * jnp.uint32(0x9E3779B1) + increment)
    seeds = jnp.stack(seeds[1:])
    others = (seeds ^ (seeds >> jnp.uint32(15))) * jnp.uint32(0x85EBCA6B)
    # Other bits of the two words for each use: of a short column few bits count.
    factor, other_factor = (seeds >> jnp.uint32(13)) | one, (others >> jnp.uint32(9)) | one
    rotation = jnp.minimum(((others >> sixteen) * size) >> sixteen, size - one)
    return jnp.stack([others, factor, other_factor, rotation], axis=1)


def _hash(bits: Array) -> Array:
    """The finalizer "lowbias32" (Chris Wellons, "Prospecting for Hash Functions", 2018).

    JAX's own generator takes longer to compile than all else here, and no more is asked than that
    channels are shuffled.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))
