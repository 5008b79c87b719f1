"""Align two networks of one family so that no source layer is used twice (for Net2Net)."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tlv_jax.layers.blocks import flatten_blocks, require_graph
from tlv_jax.matching.scores import shape_scores
from tlv_jax.types import Block, Layer, LayerPair

# Scores are compared in whole units, so that sums that should be equal are.
UNIT = 10**4


@dataclasses.dataclass(frozen=True)
class EachOnce:
    """Aligns two traced networks of one family so that no source layer is used twice.

    No two pairs cross, and layers are matched at equal resolution only: an identity may stand on
    either side of a convolution, but not on the other side of a pool. So trace both networks on
    images of the same size, large enough for every stage to have a size of its own. The best
    alignment, in this order,

    1. leaves out the fewest source layers;
    2. has the most layers that read as many channels as the layer before them writes, where they do
       so in the source: a layer inserted between the two can pass channels on;
    3. has the largest sum of scores: the shape score times how close the two ratios of outputs to
       inputs are;
    4. has the most layers that the layer before feeds in both networks: blocks stay together;
    5. takes the earliest target layers: inserted layers come last in their stage.
    """

    def __call__(
        self, source: Sequence[Layer | Block], target: Sequence[Layer | Block]
    ) -> tuple[LayerPair, ...]:
        """Pairs layers of two networks in execution order; blocks are flattened.

        Raises:
          OptionError: if the layers were not traced.
        """
        sources, targets = flatten_blocks(source), flatten_blocks(target)
        if not sources or not targets:
            return ()
        for side in (sources, targets):
            require_graph(side, "matching.EachOnce")
        (reads, writes), widths = _widths(sources), _widths(targets)
        ratio = (writes / reads)[:, None] / (widths[1] / widths[0])[None, :]
        scores = shape_scores(sources, targets) * np.minimum(ratio, 1 / ratio)
        scores[_levels(sources)[:, None] != _levels(targets)[None, :]] = 0
        # 1 except after flattening, where each channel is read at several places.
        per_channel = _feeds(sources).diagonal(1) * reads[1:] / writes[:-1]
        chosen = _align_once(scores, np.append(per_channel, 0), widths, _feeds(targets))
        return tuple(LayerPair(sources[i], targets[j]) for i, j in chosen)


def _widths(layers: Sequence[Layer]) -> np.ndarray:
    """How many channels each layer reads and writes, in all groups. `[2, n]`."""
    # Twice, because a norm's `[C]` is both.
    shapes = [layer.shape * 2 for layer in layers]
    reads = [shape[-2] * layer.groups for shape, layer in zip(shapes, layers, strict=True)]
    return np.array([reads, [shape[-1] for shape in shapes]])


def _levels(layers: Sequence[Layer]) -> np.ndarray:
    """How often each layer's number of places was halved; -1 if one is left. `[n]`."""
    places = [math.prod(layer.size) for layer in layers]
    largest = max(places)
    return np.array([round(math.log2(largest / n)) if n > 1 else -1 for n in places])


def _feeds(layers: Sequence[Layer]) -> np.ndarray:
    """`[i, j]`: whether layer i feeds layer j with no other layer between. `[n, n]`."""
    feeds = [[layer.path in user.inputs for user in layers] for layer in layers]
    # What feeds an earlier layer goes around a loop.
    return np.triu(feeds, 1)


def _align_once(
    scores: np.ndarray, per_channel: np.ndarray, widths: np.ndarray, feeds: np.ndarray
) -> list[tuple[int, int]]:
    """The best alignment of m sources and n targets, by dynamic programming from the end.

    Args:
      scores: `[m, n]`; 0 forbids.
      per_channel: how many channels the next source reads for one that this one writes; 0 if this
        one does not feed it. `[m]`.
      widths: what the targets read and write, `[2, n]`.
      feeds: which targets feed which, `[n, n]`.
    """
    rows, columns = scores.shape
    later = np.triu(np.ones((columns, columns), bool), 1)
    # The criteria 4, 3, 2 and 1 as digits of one number: a unit of each counts more than all of the
    # next together. Whole numbers in float64 are exact, and -inf forbids.
    joint, score = 1, rows + 2
    fit = score * UNIT * (rows + 1)
    used = fit * (rows + 1)
    weights = np.where(scores > 0, used + score * np.rint(scores * UNIT), -np.inf)
    # The input and the answer count as layers that go together.
    weights[0] += joint * ~feeds.any(0)
    weights[-1] += joint * ~feeds.any(1)
    best = np.full((rows + 1, columns + 1), -np.inf)  # of the rest, if it starts with this pair
    rest = np.zeros((rows + 1, columns + 1))  # of the rest, whatever it starts with
    after = np.full((rows, columns), -1)  # the next source's target, if this pair decides it
    for i in reversed(range(rows)):
        value = rest[i + 1, 1:]
        if per_channel[i]:
            # Only a pair that follows at once can fit, so it is looked at for each next target.
            fits = widths[0][None, :] == widths[1][:, None] * per_channel[i]
            following = best[i + 1, None, :-1] + fit * fits + joint * feeds
            following = np.where(later, following, -np.inf)
            after[i] = np.where(following.max(1) >= value, following.argmax(1), -1)
            value = np.maximum(value, following.max(1))
        best[i, :-1] = weights[i] + value
        rest[i] = np.maximum(rest[i + 1], np.maximum.accumulate(best[i, ::-1])[::-1])
    pairs = []
    i = j = 0
    while rest[i, j] > 0:
        # Of the best, the earliest target: criterion 5.
        j += int(np.argmax(best[i:, j:].max(0) == rest[i, j]))
        i += int(np.argmax(best[i:, j]))
        pairs.append((i, j))
        while after[i, j] >= 0:
            i, j = i + 1, int(after[i, j])
            pairs.append((i, j))
        i, j = i + 1, j + 1
    return pairs
