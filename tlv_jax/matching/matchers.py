"""The matchers, and the loops behind them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.matching.alignment import align_blocks, align_flat
from tlv_jax.matching.scores import Score, shape_scores
from tlv_jax.types import Block, Layer, LayerPair

Standardized = Sequence[Layer | Block]
Pairs = tuple[LayerPair, ...]
Match = Callable[[Standardized, Standardized], Pairs]


@dataclasses.dataclass(frozen=True)
class ByIndex:
    """Stretches the source's order over the target's (TLVFC's `IndexMatching`).

    With `m` source and `n` target layers of a kind, target `i` gets source `round(i * (m / n))`,
    but at most the last; halves round to even. Each kind is matched by itself. The published code
    gives dense layers their sources in reverse order; ours does not.
    """

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        sources = _by_kind(flatten_blocks(source))
        layers = flatten_blocks(target)
        counts = {kind: len(members) for kind, members in _by_kind(layers).items()}
        seen = dict.fromkeys(counts, 0)
        pairs = []
        for layer in layers:
            position = seen[layer.kind]
            seen[layer.kind] += 1
            if candidates := sources.get(layer.kind):
                # The ratio first, as published: in floating point 11 * (25 / 22) rounds to 13, and
                # 11 * 25 / 22 to 12.
                stretched = round(position * (len(candidates) / counts[layer.kind]))
                pairs.append(LayerPair(candidates[min(stretched, len(candidates) - 1)], layer))
        return tuple(pairs)


@dataclasses.dataclass(frozen=True)
class ByScore:
    """Aligns the two orders so that the sum of the scores is largest (DPIAT's `DPMatching`).

    Blocks are aligned with blocks, by the score of the best alignment of their parts; then their
    parts are aligned. No two pairs cross. One source may serve k targets in a row: their scores are
    summed and divided by sqrt(k).

    "Breaking the Architecture Barrier" (arXiv 2212.13970).

    Attributes:
      score: how well layers fit each other, see `tlv_jax.matching.shape_scores`.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
        if not flat_source or not flat_target:
            return ()
        scores = self.score(flat_source, flat_target)
        _, matched = align_blocks(source, target, scores)
        return tuple(LayerPair(flat_source[i], flat_target[j]) for i, j in matched)


@dataclasses.dataclass(frozen=True)
class ByCoverage:
    """Aligns blocks, or single layers where that gives more of the target a source.

    `ByScore` on blocks, as in DPIAT, keeps together what belongs together. But networks that nest
    their modules differently have few blocks to align: VGG16 gives one of ResNet18's 20 convs a
    source on blocks, and 19 on single layers.

    Attributes:
      score: how well layers fit each other, see `tlv_jax.matching.shape_scores`.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        align = ByScore(self.score)
        by_blocks = align(source, target)
        by_layers = align(flatten_blocks(source), flatten_blocks(target))
        return by_layers if len(by_layers) > len(by_blocks) else by_blocks


@dataclasses.dataclass(frozen=True)
class ByScoreFlat:
    """Aligns layers; going back in the source costs (DPIAT's `DPFlatMatching`).

    Each target layer takes a source layer or none. A source layer d places before the last one
    taken costs (d + 1) / 2, so using a layer again costs 1/2.

    Attributes:
      score: how well layers fit each other, see `tlv_jax.matching.shape_scores`.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
        if not flat_source or not flat_target:
            return ()
        scores = self.score(flat_source, flat_target)
        matched = align_flat(scores)
        return tuple(LayerPair(flat_source[i], flat_target[j]) for i, j in matched)


@dataclasses.dataclass(frozen=True)
class Bipartite:
    """Pairs each source layer with at most one target layer, with the largest sum of scores.

    As in DPIAT's `BipartiteMatching`, scores are weighted by `1 - d**2`, where d is the distance
    between the two places in [0, 1). Pairs may cross. A longer target has layers left over.

    Attributes:
      score: how well layers fit each other, see `tlv_jax.matching.shape_scores`.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
        if not flat_source or not flat_target:
            return ()
        places, others = (np.arange(len(side)) / len(side) for side in (flat_source, flat_target))
        distance = places[:, None] - others[None, :]
        weights = self.score(flat_source, flat_target) * (1 - distance**2)
        rows, columns = linear_sum_assignment(weights, maximize=True)
        matched = sorted((j, i) for i, j in zip(rows, columns, strict=True) if weights[i, j] > 0)
        return tuple(LayerPair(flat_source[i], flat_target[j]) for j, i in matched)


@dataclasses.dataclass(frozen=True)
class Random:
    """Gives each target layer any source layer of its kind: the control of an experiment.

    Every source layer is used once before one is used again. The published `RandomMatching` leaves
    the rest of a longer target without a source.

    Attributes:
      seed: of the draw.
    """

    seed: int = 0

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        sources = _by_kind(flatten_blocks(source))
        generator = np.random.default_rng(self.seed)
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
