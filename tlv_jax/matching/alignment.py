"""Align two nested sequences by dynamic programming (DPIAT, arXiv 2212.13970).

On numbers alone: `scores [m, n]` says how well each source layer fits each target layer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tlv_jax.types import Block, Layer


def align_blocks(
    source: Sequence[Layer | Block], target: Sequence[Layer | Block], scores: np.ndarray
) -> tuple[float, list[tuple[int, int]]]:
    """Aligns layers with layers, and blocks with blocks by the score of their own best alignment.

    Args:
      source: layers and blocks in order.
      target: layers and blocks in order.
      scores: of the flattened layers, `[m, n]`.

    Returns:
      The score of the best alignment, and its pairs of positions among the flattened layers, in
      the target's order.
    """
    known: dict[Any, float] = {}  # networks repeat their blocks

    def run(source: tuple[Any, ...], target: tuple[Any, ...]) -> tuple[float, list]:
        table = np.array([[score(one, other) for other in target] for one in source])
        best, chosen = align(table.reshape(len(source), len(target)))
        pairs: list[tuple[int, int]] = []
        for part, position in zip(target, chosen, strict=True):
            if position is not None:
                other = source[position]
                pairs += [(other, part)] if isinstance(part, int) else run(other, part)[1]
        return best, pairs

    def score(one: Any, other: Any) -> float:
        if isinstance(one, int) or isinstance(other, int):
            both = isinstance(one, int) and isinstance(other, int)
            return scores[one, other] if both else 0.0  # a block never gets a layer
        inside = scores[np.ix_(_flat(one), _flat(other))]
        key = _outline(one), _outline(other), inside.tobytes()
        if key not in known:
            known[key] = run(one, other)[0]
        return known[key]

    return run(_numbered(source), _numbered(target))


def align(scores: np.ndarray) -> tuple[float, list[int | None]]:
    """Gives each of n targets one of m sources, or none, without crossings.

    A run of k targets with the same source counts as the sum of their scores divided by sqrt(k). As
    in the published code, ties go to skipping, then to the shortest run.

    Args:
      scores: `[m, n]`, none negative.

    Returns:
      The best sum, and the source of each target.
    """
    sources, targets = scores.shape
    best = np.zeros((targets + 1, sources + 1))
    start = np.zeros((targets + 1, sources + 1), int)
    run, end = np.indices((targets, targets))  # runs of run + 1 targets that end at `end`
    first = np.maximum(end - run, 0)
    inside = run <= end
    discount = np.sqrt(np.arange(1, targets + 1))[:, None]
    for j in range(1, sources + 1):
        summed = np.cumsum(np.where(inside, scores[j - 1][first], 0.0), axis=0)
        values = np.where(inside, summed / discount + best[first, j - 1], -np.inf)
        longest = values.argmax(0)
        for i in range(1, targets + 1):
            above, left = best[i - 1, j], best[i, j - 1]
            # start[i, j]: first of the run that ends at i; i if it is empty, -1 if i gets nothing.
            best[i, j], start[i, j] = (above, -1) if above > left else (left, i)
            value = values[longest[i - 1], i - 1]
            if value > best[i, j]:
                best[i, j], start[i, j] = value, i - 1 - longest[i - 1]
    chosen: list[int | None] = [None] * targets
    i, j = targets, sources
    while i > 0 and j > 0:
        if start[i, j] == -1:
            i -= 1
            continue
        for position in range(start[i, j], i):
            if scores[j - 1, position] > 0:
                chosen[position] = j - 1
        i, j = start[i, j], j - 1
    return float(best[targets, sources]), chosen


def align_flat(scores: np.ndarray) -> list[tuple[int, int]]:
    """Gives each of n targets one of m sources, or none. Going back in the source costs.

    Args:
      scores: `[m, n]`, none negative.

    Returns:
      Pairs of positions, in the target's order.
    """
    sources, targets = scores.shape
    # best[i, j]: of the first i targets, where the last source taken is number j (from 1).
    best = np.zeros((targets + 1, sources + 1))
    taken = np.full((targets + 1, sources + 1), -1)  # nothing is matched
    places = np.arange(sources + 1)
    back = places[None, :] - places[:, None]  # [j, k]: how far j lies before k
    penalty = np.where(back >= 0, -(back + 1) / 2, 0.0)
    for i in range(1, targets + 1):
        values = best[i - 1][None, :] + np.concatenate(([0.0], scores[:, i - 1]))[:, None]
        values = values + penalty
        choice = values.argmax(1)
        for j in places[1:]:
            left, above = best[i, j - 1], best[i - 1, j]
            best[i, j], taken[i, j] = (left, -2) if left > above else (above, -1)
            if values[j, choice[j]] > best[i, j]:
                best[i, j], taken[i, j] = values[j, choice[j]], choice[j]
    pairs = []
    i, j = targets, sources
    while i > 0 and j > 0:
        step = taken[i, j]
        if step == -2:
            j -= 1
            continue
        i -= 1
        if step >= 0:
            # A layer that adds nothing was taken for its place only, and is no pair.
            if best[i, step] != best[i + 1, j] and scores[j - 1, i] > 0:
                pairs.append((j - 1, i))
            j = step
    return pairs[::-1]


def _numbered(blocks: Sequence[Layer | Block], first: int = 0) -> tuple[Any, ...]:
    """Nested blocks with each layer replaced by its position among the flattened ones."""
    parts = []
    for block in blocks:
        parts.append(first if isinstance(block, Layer) else _numbered(block, first))
        first += 1 if isinstance(block, Layer) else len(_flat(parts[-1]))
    return tuple(parts)


def _flat(parts: Any) -> list[int]:
    return [parts] if isinstance(parts, int) else [n for part in parts for n in _flat(part)]


def _outline(parts: Any) -> Any:
    return None if isinstance(parts, int) else tuple(map(_outline, parts))
