"""Align two networks of one family so that no source layer is used twice (for Net2Net)."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.matching.scores import shape_scores
from tlv_jax.types import Block, Layer, LayerPair

UNIT = 10**4  # scores are compared as integers, so that equal sums are equal


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
            if len(side) > 1 and not any(layer.inputs for layer in side):
                raise OptionError(
                    "matching.EachOnce: needs to know which layer feeds which, but got a bare "
                    "tree. Pass networks from tlv_jax.trace(fn, params, images)."
                )
        widths, others = _widths(sources), _widths(targets)
        ratio = (widths[1] / widths[0])[:, None] / (others[1] / others[0])[None, :]
        scores = shape_scores(sources, targets) * np.minimum(ratio, 1 / ratio)
        scores[_levels(sources)[:, None] != _levels(targets)[None, :]] = 0
        # How many channels each source layer reads for one that the layer before writes: 1 except
        # after flattening, 0 if that layer does not feed it.
        per_channel = np.append(widths[0][1:] / widths[1][:-1], 0) * np.append(
            _feeds(sources).diagonal(1), False
        )
        chosen = _align_once(scores, per_channel, others, _feeds(targets))
        return tuple(LayerPair(sources[i], targets[j]) for i, j in chosen)


def _widths(layers: Sequence[Layer]) -> np.ndarray:
    """How many channels each layer reads and writes, in all groups. `[2, n]`."""
    return np.array(
        [
            (layer.shape * 2)[-2:]
            if layer.kind == "norm"
            else (layer.shape[-2] * layer.groups, layer.shape[-1])
            for layer in layers
        ]
    ).T


def _levels(layers: Sequence[Layer]) -> np.ndarray:
    """How often each layer's number of places was halved; -1 if one is left. `[n]`."""
    places = [math.prod(layer.size) for layer in layers]
    largest = max(places)
    return np.array([round(math.log2(largest / n)) if n > 1 else -1 for n in places])


def _feeds(layers: Sequence[Layer]) -> np.ndarray:
    """`[i, j]`: whether layer i feeds layer j with no other layer between. `[n, n]`."""
    numbers = {layer.path: number for number, layer in enumerate(layers)}
    feeds = np.zeros((len(layers), len(layers)), bool)
    for layer in layers:
        for before in layer.inputs:
            feeds[numbers.get(before, numbers[layer.path]), numbers[layer.path]] = True
    return np.triu(feeds, 1)


def _align_once(
    scores: np.ndarray, per_channel: np.ndarray, widths: np.ndarray, feeds: np.ndarray
) -> list[tuple[int, int]]:
    """The best alignment of m sources and n targets, by dynamic programming from the end.

    Args:
      scores: `[m, n]`; 0 forbids.
      per_channel: how many channels the next source reads for one that this one writes; 0 if this
        one does not feed it. `[m]`.
      widths: `_widths` of the targets.
      feeds: `_feeds` of the targets.
    """
    rows, columns = scores.shape
    later = np.triu(np.ones((columns, columns), bool), 1)
    # One unit of each counts more than all of the next together.
    joint, score = 1, rows + 2
    fit = score * UNIT * (rows + 1)
    weights = np.where(scores > 0, fit * (rows + 1) + score * np.rint(scores * UNIT), -np.inf)
    weights[0] += joint * ~feeds.any(0)  # first and last layers go together
    weights[-1] += joint * ~feeds.any(1)
    best = np.full((rows + 1, columns + 1), -np.inf)  # of the rest, if it starts with this pair
    rest = np.zeros((rows + 1, columns + 1))  # of the rest, whatever it starts with
    after = np.full((rows, columns), -1)  # the next source's target, if this pair decides it
    for i in reversed(range(rows)):
        value = rest[i + 1, 1:].copy()
        if per_channel[i]:
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
        j += int(np.argmax(best[i:, j:].max(0) == rest[i, j]))  # the first of the best
        i += int(np.argmax(best[i:, j]))
        pairs.append((i, j))
        while after[i, j] >= 0:
            i, j = i + 1, int(after[i, j])
            pairs.append((i, j))
        i, j = i + 1, j + 1
    return pairs
