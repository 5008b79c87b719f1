"""The matchers. Where one has a `score`, it is as that of `ByScore`."""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.matching.alignment import align_blocks, align_flat
from tlv_jax.matching.scores import Score, shape_scores
from tlv_jax.types import Block, Layer, LayerPair

Standardized = Sequence[Layer | Block]
Pairs = tuple[LayerPair, ...]
Match = Callable[[Standardized, Standardized], Pairs]
Align = Callable[[np.ndarray], Sequence[tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class ByIndex:
    """Stretches the source's order over the target's (TLVFC's `IndexMatching`).

    With `m` source and `n` target layers of a kind, target `i` gets source `round(i * (m / n))`,
    but at most the last; halves round to even. Each kind is matched by itself. The published code
    gives dense layers their sources in reverse order; ours does not.
    """

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        sources, targets = _by_kind(source), _by_kind(target)
        given = {}
        for kind in sources.keys() & targets.keys():
            layers, count = sources[kind], len(targets[kind])
            # The ratio first, as published: 11 * (25 / 22) rounds to 13, and 11 * 25 / 22 to 12.
            ratio = len(layers) / count
            places = [min(round(i * ratio), len(layers) - 1) for i in range(count)]
            given[kind] = iter([layers[place] for place in places])
        return _by_turns(given, target)


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

        def align(scores: np.ndarray) -> Sequence[tuple[int, int]]:
            return align_blocks(source, target, scores)[1]

        return _by_scores(self.score, source, target, align)


@dataclasses.dataclass(frozen=True)
class ByCoverage:
    """Aligns blocks, or single layers where that gives more of the target a source.

    `ByScore` on blocks, as in DPIAT, keeps together what belongs together. But networks that nest
    their modules differently have few blocks to align: VGG16 gives one of ResNet18's 20 convs a
    source on blocks, and 19 on single layers.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        align = ByScore(self.score)
        # Ties go to blocks, which keep together what belongs together.
        by_blocks = align(source, target)
        by_layers = align(flatten_blocks(source), flatten_blocks(target))
        return by_layers if len(by_layers) > len(by_blocks) else by_blocks


@dataclasses.dataclass(frozen=True)
class ByScoreFlat:
    """Aligns layers; going back in the source costs (DPIAT's `DPFlatMatching`).

    Each target layer takes a source layer or none. A source layer d places before the last one
    taken costs (d + 1) / 2, so using a layer again costs 1/2.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        return _by_scores(self.score, source, target, align_flat)


@dataclasses.dataclass(frozen=True)
class Bipartite:
    """Pairs each source layer with at most one target layer, with the largest sum of scores.

    As in DPIAT's `BipartiteMatching`, scores are weighted by `1 - d**2`, where d is the distance
    between the two places in [0, 1). Pairs may cross. A longer target has layers left over.
    """

    score: Score = shape_scores

    def __call__(self, source: Standardized, target: Standardized) -> Pairs:
        """Pairs layers of two networks in execution order."""
        return _by_scores(self.score, source, target, _assigned)


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
        generator = np.random.default_rng(self.seed)

        def shuffled(layers: list[Layer]) -> Iterator[Layer]:
            # Taken from the end, and drawn again only when all are used.
            while True:
                yield from (layers[i] for i in generator.permutation(len(layers))[::-1])

        given = {kind: shuffled(layers) for kind, layers in _by_kind(source).items()}
        return _by_turns(given, target)


def _by_kind(layers: Standardized) -> dict[str, list[Layer]]:
    kinds: dict[str, list[Layer]] = {}
    for layer in flatten_blocks(layers):
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def _by_turns(given: Mapping[str, Iterator[Layer]], target: Standardized) -> Pairs:
    """Each target layer takes the next source layer that is given to its kind."""
    layers = [layer for layer in flatten_blocks(target) if layer.kind in given]
    return tuple(LayerPair(next(given[layer.kind]), layer) for layer in layers)


def _by_scores(score: Score, source: Standardized, target: Standardized, align: Align) -> Pairs:
    """Pairs the layers whose positions `align(scores)` pairs."""
    sources, targets = flatten_blocks(source), flatten_blocks(target)
    if not sources or not targets:
        return ()
    return tuple(LayerPair(sources[i], targets[j]) for i, j in align(score(sources, targets)))


def _assigned(scores: np.ndarray) -> list[tuple[int, int]]:
    """The assignment with the largest sum, in the target's order."""
    # Below 1, so that even the first and the last may be a pair.
    places, others = (np.arange(size) / size for size in scores.shape)
    weights = scores * (1 - (places[:, None] - others[None, :]) ** 2)
    pairs = zip(*linear_sum_assignment(weights, maximize=True), strict=True)
    # An assignment is complete: some of its pairs may be forbidden ones.
    return sorted(((i, j) for i, j in pairs if weights[i, j] > 0), key=operator.itemgetter(1))
