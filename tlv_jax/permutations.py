"""Draw random permutations, those of many layers at once.

Nothing is sorted: each number is sent through a bijection that the key and the column choose, a few
rounds of xor, odd multiplication and shift modulo a power of two, and rotation modulo the size. In
exchange not all of the `size!` permutations can occur of long columns; every number comes to every
place, and every pair to every two places, equally often.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Lowered

from tlv_jax.types import Array

__all__ = ["Draw", "Place", "lowered_permutations", "permutations", "places"]

INCREMENT = np.uint32(0x7F4A7C15)
ROUNDS = 4  # of mixing; with fewer, pairs of places are not quite independent for N below 10


class Draw(NamedTuple):
    """Permutations that are wanted.

    Attributes:
      owner: number of the layer from whose key they are drawn.
      size: N, how many numbers are permuted, above 0.
      columns: M, how many permutations.
      salt: tells this draw from others with the same key.
    """

    owner: int
    size: int
    columns: int
    salt: int


class Place(NamedTuple):
    """Where the permutations of a draw stand: in which array, and from which column on."""

    array: int
    column: int


class _Columns(NamedTuple):
    """All columns of all arrays, one array after another, each with some to spare at its end.

    Attributes:
      arrays: of each group, and of each of its arrays, the rows, and where its columns begin and
        end.
      owners: of the draws, `[D]`.
      salts: of the draws, uint32 `[D]`.
      draws: the draw that a column belongs to, `[M]`.
      numbers: of a column within its draw, uint32 `[M]`.
      sizes: uint32 `[M]`; in one array all have equally many bits.
    """

    arrays: tuple[tuple[tuple[int, int, int], ...], ...]
    owners: np.ndarray
    salts: np.ndarray
    draws: np.ndarray
    numbers: np.ndarray
    sizes: np.ndarray


def permutations(
    words: Array | np.ndarray, groups: tuple[tuple[Draw, ...], ...]
) -> Iterator[list[Array]]:
    """Draws random permutations, one in each column, group by group as they are asked for.

    Departs from TLVFC's published code, whose random choice is `randint(0, size - 1)`, which draws
    with replacement and can never return the last channel.

    Args:
      words: of the layers' keys, uint32 `[L, W]`, of which the first two count.
      groups: any draws.

    Yields:
      For each group arrays `[N', M']` of uint16, or of uint32 for sizes above 32,768. `N'` is a
      power of two from N on and `M'` one from the number of all columns on, neither of them small,
      so that many draws share one compiled program. Where a draw's own `[N, M]` stands, `places`
      says.
    """
    if not any(groups):
        yield from ([] for _ in groups)
        return
    columns = _laid_out(groups)
    mixers = _mixers(words, columns)  # of all groups at once: of each, they take NumPy as long
    for arrays in columns.arrays:
        # The lower bits are the same in either, and a CPU computes twice as many of half the width.
        yield [
            _permuted(mixers[:, start:stop].astype(_narrowest(rows)), rows=rows)
            for rows, start, stop in arrays
        ]


def lowered_permutations(groups: tuple[tuple[Draw, ...], ...]) -> Iterator[list[Lowered]]:
    """Lowers the programs by which `permutations` draws, group by group likewise."""
    for arrays in _laid_out(groups).arrays if any(groups) else [()] * len(groups):
        yield [
            _permuted.lower(
                jax.ShapeDtypeStruct((4 * ROUNDS + 1, stop - start), _narrowest(rows)), rows=rows
            )
            for rows, start, stop in arrays
        ]


@functools.lru_cache(maxsize=1024)
def places(draws: tuple[Draw, ...]) -> tuple[Place, ...]:
    """Where the draws of a group stand, each among the arrays of this group."""
    found: dict[int, Place] = {}
    for array, members in enumerate(_arrays(draws).values()):
        column = 0
        for member in members:
            found[member] = Place(array, column)
            column += draws[member].columns
    return tuple(found[number] for number in range(len(draws)))


def _arrays(draws: tuple[Draw, ...]) -> dict[tuple[int, int], list[int]]:
    """The numbers of the draws that one program serves, which stand in one array."""
    arrays: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, draw in enumerate(draws):
        arrays[_rounded(draw.size), draw.size.bit_length()].append(number)
    return arrays


@functools.lru_cache(maxsize=256)
def _laid_out(groups: tuple[tuple[Draw, ...], ...]) -> _Columns:
    bounds, owners, numbers, first, start = [], [], [], 0, 0
    for draws in groups:
        bounds.append([])
        for (rows, _), members in _arrays(draws).items():
            counts = [draws[member].columns for member in members]
            stop = start + _rounded(sum(counts))
            counts[-1] += stop - start - sum(counts)
            owners.append(np.repeat(members, counts) + first)
            numbers += [np.arange(count, dtype=np.uint32) for count in counts]
            bounds[-1].append((rows, start, stop))
            start = stop
        first += len(draws)
    own = np.concatenate(owners)
    owner, size, _, salt = np.array(list(itertools.chain(*groups)), np.uint32).T
    arrays = tuple(map(tuple, bounds))
    return _Columns(arrays, owner, salt, own, np.concatenate(numbers), size[own])


def _rounded(size: int) -> int:
    return 1 << max((size - 1).bit_length(), 6)


def _narrowest(rows: int) -> type:
    return np.uint16 if rows <= 1 << 15 else np.uint32


def _mixers(words: Array | np.ndarray, columns: _Columns) -> Array | np.ndarray:
    """What each column is mixed with in each round, and its size. `[L, W] -> [4 ROUNDS + 1, M]`.

    By NumPy if it can be: of each column these are a few numbers, which take XLA longer to compile
    than all permutations.
    """
    xp: Any = np if isinstance(words, np.ndarray) else jnp
    owners = words[columns.owners]
    first = _hash(owners[:, 0] ^ columns.salts)
    second = _hash(owners[:, 1] + first + INCREMENT)
    numbers = columns.numbers * np.uint32(0x9E3779B9)
    seed = _hash(numbers + first[columns.draws]) ^ second[columns.draws]
    seeds = []
    for _ in range(ROUNDS):
        seed = seed * np.uint32(0x9E3779B1) + INCREMENT
        seeds.append(seed)
    seeds = xp.stack(seeds)
    others = (seeds ^ (seeds >> 15)) * np.uint32(0x85EBCA6B)
    sizes = columns.sizes[None]
    rotations = xp.minimum(((others >> 16) * sizes) >> 16, sizes - np.uint32(1))
    # Other bits of the two words for each use: of a short column few bits count.
    mixers = [others, (seeds >> 13) | 1, (others >> 9) | 1, rotations, sizes]
    return xp.concatenate(mixers)


@functools.partial(jax.jit, static_argnames="rows")
def _permuted(mixers: Array, *, rows: int) -> Array:
    """`[4 ROUNDS + 1, M] -> [rows, M]`."""
    dtype, size = mixers.dtype, mixers[-1:]
    bits = jnp.uint32(31) - lax.clz(size[0, 0].astype(jnp.uint32))  # below the highest one
    mask = ((jnp.uint32(1) << bits) - jnp.uint32(1)).astype(dtype)
    half = jnp.maximum((bits + jnp.uint32(1)) >> jnp.uint32(1), jnp.uint32(1)).astype(dtype)
    numbers = lax.broadcasted_iota(dtype, (rows, mixers.shape[1]), 0)
    mixing = mixers[:-1].reshape(4, ROUNDS, 1, -1)
    for flipped, factor, other_factor, rotation in zip(*mixing, strict=True):
        mixed = ((numbers ^ flipped) * factor) & mask
        mixed = mixed ^ (mixed >> half)
        mixed = (mixed * other_factor) & mask
        mixed = mixed ^ (mixed >> half)
        numbers = jnp.where(numbers <= mask, mixed, numbers) + rotation
        numbers = jnp.minimum(numbers, numbers - size)  # modulo: below 0 is large
    return numbers


def _hash(bits: Any) -> Any:
    """The finalizer "lowbias32" (Chris Wellons, "Prospecting for Hash Functions", 2018).

    JAX's own generator takes longer to compile than all else here, and no more is asked than that
    channels are shuffled.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return bits ^ (bits >> 16)
