"""Give each target layer a source layer.

A matcher is a function `(source, target) -> pairs`, on what a standardization returned: layers, or
blocks of them; pairs come in the target's order, and a target layer may be left without one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tlv_jax.alignment import align_blocks
from tlv_jax.blocks import flatten_blocks
from tlv_jax.scores import Score, shape_scores
from tlv_jax.types import Block, Layer, LayerPair

__all__ = [
    "Match",
    "match_bipartite",
    "match_by_coverage",
    "match_by_index",
    "match_by_score",
    "match_by_score_flat",
    "match_random",
]

Standardized = Sequence[Layer | Block]
Match = Callable[[Standardized, Standardized], tuple[LayerPair, ...]]


def match_by_index(source: Standardized, target: Standardized) -> tuple[LayerPair, ...]:
    """Stretches the source's order over the target's (TLVFC's `IndexMatching`).

    Of `m` source and `n` target layers of a kind, target `i` is given source `round(i * m / n)`,
    halves rounded to even and the last source at most. Kinds are matched apart: a dense layer is
    never given a conv.

    Args:
      source: layers in execution order; blocks are flattened.
      target: likewise.

    Returns:
      One pair for each target layer of a kind that the source has.
    """
    sources = _by_kind(flatten_blocks(source))
    layers = flatten_blocks(target)
    counts = {kind: len(members) for kind, members in _by_kind(layers).items()}
    seen = dict.fromkeys(counts, 0)
    pairs = []
    for layer in layers:
        position = seen[layer.kind]
        seen[layer.kind] += 1
        if candidates := sources.get(layer.kind):
            stretched = round(position * len(candidates) / counts[layer.kind])
            pairs.append(LayerPair(candidates[min(stretched, len(candidates) - 1)], layer))
    return tuple(pairs)


def match_by_score(
    source: Standardized, target: Standardized, *, score: Score = shape_scores
) -> tuple[LayerPair, ...]:
    """Aligns the two orders so that the sum of the scores is largest (DPIAT's `DPMatching`).

    Blocks are aligned with blocks, whose score is that of the best alignment of their parts, and
    then their parts likewise. No two pairs cross. One source may serve k targets in a row, whose
    scores are then summed and divided by sqrt(k): more for it, but less for each.

    "Breaking the Architecture Barrier" (arXiv 2212.13970).

    Args:
      source: layers and blocks in execution order.
      target: likewise.
      score: how well layers fit each other; see `tlv_jax.scores`.

    Returns:
      One pair for each target layer that the best alignment gives a source.
    """
    flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
    if not flat_source or not flat_target:
        return ()
    scores = score(flat_source, flat_target)
    _, matched = align_blocks(source, target, scores)
    return tuple(LayerPair(flat_source[i], flat_target[j]) for i, j in matched)


def match_by_coverage(
    source: Standardized, target: Standardized, *, score: Score = shape_scores
) -> tuple[LayerPair, ...]:
    """Aligns blocks, or single layers where that gives more of the target a source.

    `match_by_score` on blocks, as in DPIAT, keeps together what belongs together, but two networks
    that nest their modules unlike find few blocks to align: of ResNet18's 20 convs, VGG16 would
    give one a source, and on single layers 19.

    Args:
      source: layers and blocks in execution order.
      target: likewise.
      score: see `match_by_score`.
    """
    by_blocks = match_by_score(source, target, score=score)
    by_layers = match_by_score(flatten_blocks(source), flatten_blocks(target), score=score)
    return by_layers if len(by_layers) > len(by_blocks) else by_blocks


def match_by_score_flat(
    source: Standardized, target: Standardized, *, score: Score = shape_scores
) -> tuple[LayerPair, ...]:
    """Aligns layers where going back in the source costs (DPIAT's `DPFlatMatching`).

    Each target layer takes a source layer or none. To take one that is d places before the last one
    taken costs (d + 1) / 2, so that using a layer again costs 1/2.

    Args:
      source: layers in execution order; blocks are flattened.
      target: likewise.
      score: see `match_by_score`.
    """
    flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
    if not flat_source or not flat_target:
        return ()
    scores = score(flat_source, flat_target)
    count, places = len(flat_target), np.arange(len(flat_source) + 1)
    # best[i, j]: of the first i targets, the last source taken being number j (counted from 1).
    best = np.zeros((count + 1, len(places)))
    taken = np.zeros((count + 1, len(places)), int)
    back = places[None, :] - places[:, None]  # [j, k]: how far j lies before k
    penalty = np.where(back >= 0, -(back + 1) / 2, 0.0)
    taken[:] = -1  # nothing is matched
    for i in range(1, count + 1):
        values = best[i - 1][None, :] + np.concatenate(([0.0], scores[:, i - 1]))[:, None]
        values = values + penalty
        choice = values.argmax(1)
        for j in places[1:]:
            left, above = best[i, j - 1], best[i - 1, j]
            best[i, j], taken[i, j] = (left, -2) if left > above else (above, -1)
            if values[j, choice[j]] > best[i, j]:
                best[i, j], taken[i, j] = values[j, choice[j]], choice[j]
    pairs = []
    i, j = count, len(flat_source)
    while i > 0 and j > 0:
        step = taken[i, j]
        if step == -2:
            j -= 1
            continue
        i -= 1
        if step >= 0:
            # A layer that adds nothing is none: it was taken for its place alone.
            if best[i, step] != best[i + 1, j] and scores[j - 1, i] > 0:
                pairs.append(LayerPair(flat_source[j - 1], flat_target[i]))
            j = step
    return tuple(reversed(pairs))


def match_bipartite(
    source: Standardized, target: Standardized, *, score: Score = shape_scores
) -> tuple[LayerPair, ...]:
    """Pairs each source layer with at most one target layer, with the largest sum of scores.

    Scores are weighted by `1 - d**2`, with d the distance between the two places in [0, 1), as in
    DPIAT's `BipartiteMatching`; the order is not kept otherwise. Of a longer target, layers are
    left over.

    Args:
      source: layers in execution order; blocks are flattened.
      target: likewise.
      score: see `match_by_score`.
    """
    flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
    if not flat_source or not flat_target:
        return ()
    places, others = (np.arange(len(side)) / len(side) for side in (flat_source, flat_target))
    weights = score(flat_source, flat_target) * (1 - (places[:, None] - others[None, :]) ** 2)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    matched = sorted(zip(columns, rows, strict=True))
    return tuple(LayerPair(flat_source[i], flat_target[j]) for j, i in matched if weights[i, j] > 0)


def match_random(
    source: Standardized, target: Standardized, *, seed: int = 0
) -> tuple[LayerPair, ...]:
    """Gives each target layer any source layer of its kind: the control of an experiment.

    Every source layer is used once before one is used again, unlike in the published
    `RandomMatching`, which leaves the rest of a longer target without.

    Args:
      source: layers; blocks are flattened.
      target: likewise.
      seed: of the draw.
    """
    sources = _by_kind(flatten_blocks(source))
    generator = np.random.default_rng(seed)
    left: dict[str, list[Layer]] = {}
    pairs = []
    for layer in flatten_blocks(target):
        if not (candidates := sources.get(layer.kind)):
            continue
        if not left.get(layer.kind):
            left[layer.kind] = [candidates[i] for i in generator.permutation(len(candidates))]
        pairs.append(LayerPair(left[layer.kind].pop(), layer))
    return tuple(pairs)


def _by_kind(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds
