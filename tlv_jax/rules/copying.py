"""Rules that copy a part of the source into the target: clip, full and uniform."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tlv_jax.arrays import namespace, noise, replace
from tlv_jax.types import Array


def paste(source: Any, target: Any, centred: Sequence[bool]) -> Any:
    """Copies as much of the source into the target as fits.

    Args:
      source: of the target's rank.
      target: gives shape, dtype, and the entries that the source does not cover.
      centred: for each axis, whether the middle goes to the middle (towards the start where the
        difference is odd) or the start to the start.
    """

    def window(sizes: Sequence[int], others: Sequence[int]) -> tuple[slice, ...]:
        starts = [
            max(n - m, 0) // 2 if c else 0 for n, m, c in zip(sizes, others, centred, strict=True)
        ]
        return tuple(slice(s, s + min(n, m)) for s, n, m in zip(starts, sizes, others, strict=True))

    here, there = window(source.shape, target.shape), window(target.shape, source.shape)
    return replace(target, there, source[here])


@dataclasses.dataclass(frozen=True)
class Clip:
    """Copies the centre of the source into the centre of the target (DPIAT's "clip").

    Along every axis the middle `min(n, n')` entries are copied, towards the start where the
    difference is odd. All others keep the target's value. Works for parameters of any rank.
    """

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one parameter into another's shape, of equal rank. The key is not used."""
        xp = namespace(key, source, target)
        return paste(source, xp.asarray(target), [True] * target.ndim)


@dataclasses.dataclass(frozen=True)
class Full:
    """Fills the whole target from the source (DPIAT's "full").

    Along every axis a larger source gives its middle entries, as in `Clip`. A smaller one stands in
    the middle, and the places around it repeat random entries of it. The published code fails where
    the difference is 1; ours does not.
    """

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one parameter into another's shape, of equal rank."""
        xp = namespace(key, source, target)
        for axis, (n, m) in enumerate(zip(source.shape, target.shape, strict=True)):
            if n >= m:
                chosen = (n - m) // 2 + np.arange(m)
            else:
                # Words of one size: `randint` would compile a program for each size.
                words = noise(jax.random.fold_in(key, axis), (m,), xp)
                start = (m - n) // 2
                chosen = replace(
                    (words % n).astype(np.int32), slice(start, start + n), np.arange(n)
                )
            source = xp.take(source, chosen, axis=axis)
        return source.astype(target.dtype)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Takes evenly spaced channels of a larger source ("weight selection").

    Along each of the two channel axes, it takes n of N entries: those at
    `round(i * (N - 1) / (n - 1))`. A smaller source stands first, and the rest of the target keeps
    its values. Spatial axes are clipped to their centres.

    "Initializing Models with Larger Ones" (ICLR 2024, arXiv 2311.18823) selects along every axis
    and needs a larger source. Ours clips the spatial axes: pixels of a kernel belong side by side.
    """

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel `[*spatial, I, O]` or vector `[C]`. The key is not used."""
        xp = namespace(key, source, target)
        spatial = max(target.ndim - 2, 0)
        for axis in range(spatial, target.ndim):
            n, m = source.shape[axis], target.shape[axis]
            if n > m:
                chosen = np.linspace(0, n - 1, m).round().astype(int)
                source = xp.take(source, chosen, axis=axis)
        return paste(source, xp.asarray(target), [axis < spatial for axis in range(target.ndim)])
