"""Choose channels: by their variance, or at random.

A strategy says which ranks are chosen of channels in ascending order of variance, as
`(N, count) -> ranks [count]` in NumPy, for any `1 <= count <= N`; equal variances rank by position.
They are those of TLVFC's published code (`choose_candidate`), made total: any count and never a
channel twice. `random` needs no ranks; its order comes from `permutations`.
"""

import functools
import timeit
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
    "chosen_ranks",
    "drawn_size",
    "in_memory",
    "interleaved_ranks",
    "max_ranks",
    "min_ranks",
    "numbers_of_places",
    "placed",
    "two_tailed_ranks",
]

RUN = 256  # 64-bit integers: as many as NumPy sorts by a network
INFINITY = 0x7F800000  # of a float32, its bits

# JAX moved it out of its experimental part in 0.8.
if hasattr(jax, "enable_x64"):
    _enable_x64: Any = jax.enable_x64
else:
    from jax.experimental import enable_x64 as _enable_x64  # type: ignore[attr-defined]


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


@functools.lru_cache(maxsize=4096)
def chosen_ranks(name: str, size: int, count: int) -> np.ndarray:
    """Those that a strategy of `RANKS` chooses, kept for the next call: not to be written to."""
    return RANKS[name](size, count)


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
    halves = np.empty((*values.shape, 2), "<i4")  # of one integer each, the lower half first
    halves[..., 0] = np.arange(values.shape[-1])
    halves[..., 1] = _ordered_bits(values)
    packed = halves.view("<i8")[..., 0]
    if values.shape[-1] <= RUN or not _runs_are_faster():
        packed.sort(axis=-1)
    else:
        _sort_runs(packed)
    return halves[..., 0]


@functools.cache
def _runs_are_faster() -> bool:
    """Whether this processor sorts more than `RUN` integers faster by runs than all at once.

    NumPy sorts a run by a network. More of them it divides first, with AVX-512 by instructions that
    take some processors many times as long as others: seven times as long as a network, or twice.
    """
    integers = np.random.default_rng(0).integers(1 << 62, size=(8, 4 * RUN))
    by_runs, at_once = (
        min(timeit.repeat(lambda sort=sort: sort(integers.copy()), number=1, repeat=5))
        for sort in (_sort_runs, np.ndarray.sort)
    )
    return by_runs < at_once


def _sort_runs(integers: np.ndarray) -> None:
    """Sorts the last axis in place: NumPy's stable sort finds sorted runs, and only merges them."""
    *others, size = integers.shape
    runs = size // RUN
    integers[..., : runs * RUN].reshape(*others, runs, RUN).sort(axis=-1)
    integers[..., runs * RUN :].sort(axis=-1)
    integers.sort(axis=-1, kind="stable")


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats."""
    bits = values.view(np.int32)
    if bits.view(np.uint32).max(initial=0) <= INFINITY:  # none is negative, -0.0 or NaN
        return bits
    values = values + np.float32(0)  # -0.0 is equal to 0.0, and must be in its bits
    values[np.isnan(values)] = np.nan
    bits = values.view(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


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
      drawn: for each column a permutation of `drawn_size` numbers, at least `[N, columns]`.
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
    table[chosen_ranks(remove, places, count)] = np.arange(count)
    numbers = xp.asarray(table)[xp.argsort(xp.broadcast_to(order, shape), axis=0)]
    if not shuffle:
        return numbers
    assert drawn is not None
    moved = xp.take_along_axis(drawn, xp.maximum(numbers, 0), axis=0)
    return xp.where(numbers < 0, np.int32(-1), moved)


def placed(size: int, remove: str) -> int:
    """How many of `size` numbers find a place in a larger target."""
    return size - size % 2 if remove == "two_tailed" and size > 1 else size


def drawn_size(size: int, places: int, *, remove: str, shuffle: bool) -> int | None:
    """Of how many numbers `numbers_of_places` needs permutations; None if nothing is random.

    Args:
      size: how many numbers there are.
      places: how many places.
      remove: one of `SELECTIONS`.
      shuffle: whether numbers are permuted.
    """
    by_chance = size > places or (size < places and remove == "random")
    if not (shuffle or by_chance):
        return None
    if size >= places:
        return size
    return places if by_chance else placed(size, remove)
