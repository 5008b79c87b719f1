"""Rules that copy a part of the source into the target: clip, full and uniform."""

import dataclasses
from typing import Any

import numpy as np

from tlv_jax.arrays import fold_in, namespace, noise, replace
from tlv_jax.types import Array


def paste(source: Any, target: Any, centred: int | None = None) -> Any:
    """Copies as much of the source into the target as fits.

    Args:
      source: of the target's rank.
      target: gives shape, dtype, and the entries that the source does not cover.
      centred: how many leading axes put the middle into the middle, towards the start where the
        difference is odd; all if None. The others put the start at the start.
    """
    here, there = [], []
    for axis, (n, m) in enumerate(zip(source.shape, target.shape, strict=True)):
        size = min(n, m)
        middle = centred is None or axis < centred
        first, place = ((n - size) // 2, (m - size) // 2) if middle else (0, 0)
        here.append(slice(first, first + size))
        there.append(slice(place, place + size))
    return replace(target, tuple(there), source[tuple(here)])


@dataclasses.dataclass(frozen=True)
class Clip:
    """Copies the centre of the source into the centre of the target (DPIAT's "clip").

    Along every axis the middle `min(n, n')` entries are copied, towards the start where the
    difference is odd. All others keep the target's value. Works for parameters of any rank.
    """

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one parameter into another's shape, of equal rank. The key is not used."""
        xp = namespace(key, source, target)
        return paste(source, xp.asarray(target))


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
                # Drawn in blocks of one size: `randint` would compile a program for each size.
                words = noise(fold_in(key, axis), (m,), xp)
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
    and needs a larger source. Ours clips the spatial axes.
    """

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel `[*spatial, I, O]` or vector `[C]`. The key is not used."""
        xp = namespace(key, source, target)
        spatial = max(target.ndim - 2, 0)
        # Pixels of a kernel belong side by side: only channels are spread.
        for axis in range(spatial, target.ndim):
            n, m = source.shape[axis], target.shape[axis]
            if n > m:
                chosen = np.linspace(0, n - 1, m).round().astype(int)
                source = xp.take(source, chosen, axis=axis)
        return paste(source, xp.asarray(target), centred=spatial)
