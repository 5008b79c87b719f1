"""Align two nested sequences by dynamic programming (DPIAT, arXiv 2212.13970)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.types import Block, Layer

Pairs = list[tuple[int, int]]
"""Positions of a source and a target layer among the flattened ones, in the target's order."""


def align_blocks(
    source: Sequence[Layer | Block], target: Sequence[Layer | Block], scores: np.ndarray
) -> tuple[float, Pairs]:
    """Aligns layers with layers, and blocks with blocks by the score of their own best alignment.

    From the scores `[m, n]` of the flattened layers to the score of the best alignment, and its
    pairs.
    """
    known: dict[Any, tuple[float, Pairs]] = {}  # networks repeat their blocks

    def fit(one: Any, other: Any, scores: np.ndarray) -> tuple[float, Pairs]:
        if isinstance(one, Layer) and isinstance(other, Layer):
            return scores[0, 0], [(0, 0)]
        if isinstance(one, Layer) or isinstance(other, Layer):
            return 0.0, []  # a block never gets a layer
        key = _outline(one), _outline(other), scores.tobytes()
        if key not in known:
            rows, columns = _spans(one), _spans(other)
            fits = [
                [fit(a, b, scores[i, j]) for b, j in zip(other, columns, strict=True)]
                for a, i in zip(one, rows, strict=True)
            ]
            table = np.array([[part[0] for part in row] for row in fits])
            best, chosen = align(table.reshape(len(rows), len(columns)))
            # Pairs within two parts count from the start of these parts.
            known[key] = (
                best,
                [
                    (rows[i].start + a, columns[j].start + b)
                    for j, i in enumerate(chosen)
                    if i is not None
                    for a, b in fits[i][j][1]
                ],
            )
        return known[key]

    return fit(tuple(source), tuple(target), scores)


def align(scores: np.ndarray) -> tuple[float, list[int | None]]:
    """Gives each of n targets one of m sources, or none, without crossings.

    A run of k targets with the same source counts as the sum of their scores divided by sqrt(k).
    From scores `[m, n]`, none negative, to the best sum, and the source of each target.
    """
    sources, targets = scores.shape
    best = np.zeros((sources + 1, targets + 1))  # of the first i sources and j targets
    longest = np.zeros(scores.shape, int)  # the best run of source i that ends at target j
    run, end = np.indices((targets, targets))  # runs of run + 1 targets
    first = np.maximum(end - run, 0)
    # As published: one source that serves many targets is worth less than many sources.
    discount = np.sqrt(np.arange(1, targets + 1))[:, None]
    for i in range(sources):
        summed = np.cumsum(np.where(run <= end, scores[i][first], 0.0), axis=0)
        values = np.where(run <= end, summed / discount + best[i, first], -np.inf)
        longest[i] = values.argmax(0)  # the shortest of equal runs, as published
        best[i + 1, 1:] = np.maximum.accumulate(np.maximum(best[i, 1:], values.max(0)))
    chosen: list[int | None] = [None] * targets
    i, j = sources, targets
    while i > 0 and j > 0:
        without_target, without_source = best[i, j - 1], best[i - 1, j]
        if best[i, j] > max(without_target, without_source):
            start = j - 1 - longest[i - 1, j - 1]
            for position in range(start, j):
                # A target that fits nothing may lie within a run.
                if scores[i - 1, position] > 0:
                    chosen[position] = i - 1
            i, j = i - 1, start
        # As published, ties go to leaving out: first the source, then the target.
        elif without_target > without_source:
            j -= 1
        else:
            i -= 1
    return float(best[sources, targets]), chosen


def align_flat(scores: np.ndarray) -> Pairs:
    """Gives each of n targets one of m sources, or none. Going back in the source costs."""
    sources, targets = scores.shape
    # Of the first j targets, where the last source taken is number i (from 1).
    best = np.zeros((targets + 1, sources + 1))
    before = np.zeros((targets + 1, sources + 1), int)  # the source taken before it
    back = np.arange(sources + 1) - np.arange(sources + 1)[:, None]  # [i, k]: how far i is before k
    penalty = np.where(back >= 0, -(back + 1) / 2, 0.0)[1:]
    for j in range(1, targets + 1):
        values = best[j - 1] + scores[:, j - 1, None] + penalty
        before[j, 1:] = values.argmax(1)
        best[j, 1:] = np.maximum.accumulate(np.maximum(best[j - 1, 1:], values.max(1)))
    pairs = []
    i, j = sources, targets
    while i > 0 and j > 0:
        without_target, without_source = best[j - 1, i], best[j, i - 1]
        if best[j, i] > max(without_target, without_source):
            source, i, j = i, before[j, i], j - 1
            # A layer that adds nothing was taken for its place only, and is no pair.
            if best[j, i] != best[j + 1, source] and scores[source - 1, j] > 0:
                pairs.append((source - 1, j))
        elif without_source > without_target:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _spans(parts: Block) -> list[slice]:
    """Where the layers of each part stand among all of them."""
    ends = np.cumsum([len(flatten_blocks([part])) for part in parts]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _outline(part: Layer | Block) -> Any:
    """The nesting alone: equal for blocks that differ in their layers only."""
    return None if isinstance(part, Layer) else tuple(map(_outline, part))
