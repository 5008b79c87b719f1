"""Give a deeper network the function of a shallower one (Net2Net, arXiv 1511.05641, section 2.3).

The matcher uses each source layer once and in order. What is left over of the target was inserted,
and is initialized so that it changes nothing: in a plain network as an identity, in a residual one
so that its branch adds zero.

Words: a *kernel layer* is a conv or dense layer. A *branch* is what a residual add joins with the
layers before it.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from tlv_jax.blocks import flatten_blocks
from tlv_jax.channels import UNKNOWN, ChannelGraph, LayerLabels
from tlv_jax.scores import shape_scores
from tlv_jax.types import Array, Block, Layer, LayerPair

__all__ = [
    "Inserted",
    "Insertions",
    "identity_kernel",
    "inserted_leaves",
    "match_each_once",
    "plan_insertions",
]

UNIT = 10**4  # of scores, which are compared as integers, so that equal sums are equal
GATED = "what it would add is multiplied with another layer's output"
IDENTITY = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}


@dataclasses.dataclass(frozen=True)
class Inserted:
    """A target layer without a source that is made to change nothing.

    Attributes:
      layer: of the target.
      role: `identity` hands its inputs on; `zero` ends a branch that adds nothing.
      constants: `(leaf path, value)` of each leaf that is filled. The kernel of an identity is not
        among them: see `identity_kernel`.
    """

    layer: Layer
    role: Literal["identity", "zero"]
    constants: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Insertions:
    """What becomes of the target layers that have no source.

    Attributes:
      inserted: those that are made to change nothing, in order of execution.
      reasons: of all others, by path: why they stay as they are.
      graph: the target's channels, those that an identity writes being those that it reads.
    """

    inserted: tuple[Inserted, ...]
    reasons: Mapping[str, str]
    graph: ChannelGraph


def match_each_once(
    source: Sequence[Layer | Block],
    target: Sequence[Layer | Block],
    *,
    source_graph: ChannelGraph,
    target_graph: ChannelGraph,
) -> tuple[LayerPair, ...]:
    """Aligns two networks of one family so that no source layer is used twice.

    No two pairs cross, and layers are matched at equal resolution only: an identity may stand on
    either side of a convolution, but not on the other side of a pool. Of all such alignments those
    are best, in this order,

    1. that leave out the fewest source layers;
    2. where most layers read as many channels as the layer before them writes, if they do so in the
       source: what is inserted between the two passes channels on;
    3. with the largest sum of scores, the shape score times the likeness of the two ratios of
       outputs to inputs;
    4. where most layers are fed by the one before them in both networks: blocks stay together;
    5. that take the earliest target layers: what is inserted comes last in its stage.

    Args:
      source: layers; blocks are flattened. The graph tells in which order they are executed.
      target: likewise.
      source_graph: from `trace_channels`; trace both networks on images of the same size, large
        enough for every stage to have a size of its own.
      target_graph: likewise.

    Returns:
      At most one pair for each layer of either side, in the target's order.
    """
    sources, targets = _ordered(source, source_graph), _ordered(target, target_graph)
    if not sources or not targets:
        return ()
    widths, others = _widths(sources, source_graph), _widths(targets, target_graph)
    ratio = (widths[1] / widths[0])[:, None] / (others[1] / others[0])[None, :]
    scores = shape_scores(sources, targets) * np.minimum(ratio, 1 / ratio)
    levels = _levels(sources, source_graph)
    scores[levels[:, None] != _levels(targets, target_graph)[None, :]] = 0
    source_feeds, target_feeds = (
        _feeds(layers, graph)
        for layers, graph in ((sources, source_graph), (targets, target_graph))
    )
    # How many channels each source layer reads for each that the one before it writes: 1 but for
    # flattening; none where the one before does not feed it.
    per_channel = np.append(widths[0][1:] / widths[1][:-1], 0) * np.append(
        source_feeds.diagonal(1), False
    )
    chosen = _align_once(scores, per_channel, others, target_feeds)
    return tuple(LayerPair(sources[i], targets[j]) for i, j in chosen)


def _ordered(blocks: Sequence[Layer | Block], graph: ChannelGraph) -> list[Layer]:
    """The layers in order of execution, those that the trace did not meet last."""
    places = {path: place for place, path in enumerate(graph)}
    return sorted(flatten_blocks(blocks), key=lambda layer: places.get(layer.path, len(places)))


def _widths(layers: Sequence[Layer], graph: ChannelGraph) -> np.ndarray:
    """How many channels each layer reads and writes, of all groups. `[2, n]`."""
    known = [graph.get(layer.path) for layer in layers]
    return np.array(
        [
            (len(labels.reads), len(labels.writes)) if labels else (layer.shape * 2)[-2:]
            for labels, layer in zip(known, layers, strict=True)
        ]
    ).T


def _levels(layers: Sequence[Layer], graph: ChannelGraph) -> np.ndarray:
    """How often each layer's number of places was halved, -1 where one is left. `[n]`."""
    places = [math.prod(graph[layer.path].size) if layer.path in graph else 1 for layer in layers]
    largest = max(places)
    return np.array([round(math.log2(largest / n)) if n > 1 else -1 for n in places])


def _feeds(layers: Sequence[Layer], graph: ChannelGraph) -> np.ndarray:
    """`[i, j]`: whether layer i feeds layer j with no other layer between. `[n, n]`."""
    numbers = {layer.path: number for number, layer in enumerate(layers)}
    feeds = np.zeros((len(layers), len(layers)), bool)
    for path, number in numbers.items():
        for before in graph[path].inputs if path in graph else ():
            feeds[numbers.get(before, number), number] = True
    return np.triu(feeds, 1)


def _align_once(
    scores: np.ndarray, per_channel: np.ndarray, widths: np.ndarray, feeds: np.ndarray
) -> list[tuple[int, int]]:
    """The best alignment of m sources and n targets, by dynamic programming from the end.

    Args:
      scores: `[m, n]`; 0 forbids.
      per_channel: how many channels the next source reads for each that this one writes, 0 where
        this one does not feed it, `[m]`.
      widths: of the targets, as `_widths`.
      feeds: likewise, as `_feeds`.
    """
    rows, columns = scores.shape
    later = np.triu(np.ones((columns, columns), bool), 1)
    # Each counts more than all that can be had of the next.
    joint, score = 1, rows + 2
    fit = score * UNIT * (rows + 1)
    weights = np.where(scores > 0, fit * (rows + 1) + score * np.rint(scores * UNIT), -np.inf)
    weights[0] += joint * ~feeds.any(0)  # the networks' beginnings, and their ends
    weights[-1] += joint * ~feeds.any(1)
    best = np.full((rows + 1, columns + 1), -np.inf)  # of the rest, if it begins with this pair
    rest = np.zeros((rows + 1, columns + 1))  # of the rest, whatever it begins with
    after = np.full((rows, columns), -1)  # the next source's target, where it is told by this pair
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
        j += int(np.argmax(best[i:, j:].max(0) == rest[i, j]))  # the first one of the best
        i += int(np.argmax(best[i:, j]))
        pairs.append((i, j))
        while after[i, j] >= 0:
            i, j = i + 1, int(after[i, j])
            pairs.append((i, j))
        i, j = i + 1, j + 1
    return pairs


def plan_insertions(
    layers: Sequence[Layer], matched: Collection[str], graph: ChannelGraph
) -> Insertions:
    """Decides how the target layers that have no source can leave the function as it is.

    From the end of the network: a layer whose outputs only reach branches that add nothing stays as
    it is, so that it can learn. Of one that adds to a matched layer, the norm behind it (else its
    kernel) becomes zero. Any other becomes an identity, with the norm behind it.

    An identity is exact where its inputs went through the activation that follows it and that
    changes them no more, such as ReLU; this cannot be told from shapes. A norm divides by
    sqrt(1 + epsilon), an error of 5e-6 for the usual 1e-5; where it takes the statistics of its
    batch while training, it is no identity (the paper would estimate them from data). Branches
    that add nothing are exact in either mode.

    Args:
      layers: of the target, those of the kinds that are carried over.
      matched: paths of those that have a source.
      graph: from `trace_channels` of the target.
    """
    added = {layer.path: layer for layer in layers if layer.path not in matched}
    reasons = {path: "inserted, but the trace did not meet it" for path in added}
    users = {path: [user for user in graph if path in graph[user].inputs] for path in added}
    adding = _adding(added, graph)
    roles: dict[str, Inserted] = {}
    quiet: set[str] = set()  # what these write reaches nobody
    for path in reversed([path for path in graph if path in added]):
        layer, labels = added[path], graph[path]
        norms = [
            user
            for user in users[path]
            if user in added and added[user].kind == "norm" and graph[user].inputs == (path,)
        ]
        if users[path] and quiet.issuperset(users[path]):
            quiet.add(path)
            reasons[path] = "inserted, within a branch that adds nothing"
        elif path in adding and not labels.gated and not norms:
            quiet.add(path)
            roles[path] = _zero(layer)
            reasons[path] = "inserted, at the end of a branch that adds nothing"
        elif why := GATED if path in adding else _not_identity(layer, labels, roles, norms):
            reasons[path] = f"inserted, but {why}"
            for norm in norms:
                if roles.pop(norm, None):
                    reasons[norm] = "inserted, behind a layer that cannot be an identity"
        else:
            roles[path] = _identity(layer)
    inserted = tuple(roles[path] for path in graph if path in roles)
    passing = [entry.layer.path for entry in inserted if entry.role == "identity"]
    return Insertions(inserted, reasons, _passed_on(graph, passing))


def _adding(added: Mapping[str, Layer], graph: ChannelGraph) -> set[str]:
    """The inserted kernel layers that add to what matched ones wrote, and the norms behind them."""
    written: set[int] = set()
    adding: set[str] = set()
    for path, labels in graph.items():
        layer = added.get(path)
        if layer is None:
            written.update(labels.writes)
        elif layer.kind == "norm":
            if len(labels.inputs) == 1 and adding.issuperset(labels.inputs):
                adding.add(path)
        elif labels.groups < len(labels.reads) and written.issuperset(labels.writes):
            adding.add(path)  # a depthwise conv writes what it reads, and adds nothing to it
    return adding


def _zero(layer: Layer) -> Inserted:
    vectors = ((path, 0.0) for name, path in layer.vectors if name == "bias")
    return Inserted(layer, "zero", ((layer.weight, 0.0), *vectors))


def _identity(layer: Layer) -> Inserted:
    vectors = ((path, IDENTITY[name]) for name, path in layer.vectors)
    scale = ((layer.weight, IDENTITY["scale"]),) if layer.kind == "norm" else ()
    return Inserted(layer, "identity", (*scale, *vectors))


def inserted_leaves(entry: Inserted) -> tuple[str, ...]:
    """The leaves that making a layer change nothing replaces."""
    return tuple(dict.fromkeys((entry.layer.weight, *(path for path, _ in entry.constants))))


def _not_identity(
    layer: Layer, labels: LayerLabels, roles: Collection[str], norms: Sequence[str]
) -> str | None:
    """Why a layer cannot hand its inputs on; None if it can."""
    if layer.kind == "norm":
        known = {"mean", "var"} <= dict(layer.vectors).keys()
        return None if known else "it normalizes by what it is given, so it cannot be an identity"
    if layer.index:
        return "its kernel is one of a stack, which cannot be filled by itself"
    if len(labels.reads) != len(labels.writes):
        return "it changes the number of channels"
    if not labels.stays:
        return "its stride, padding or even kernel moves what it is given"
    if UNKNOWN in labels.reads:
        return "it is not known which channels it reads"
    return None if set(norms) <= set(roles) else "the norm behind it cannot be one"


def _passed_on(graph: ChannelGraph, passing: Sequence[str]) -> ChannelGraph:
    """The graph with each channel that an identity writes called as the one that it reads."""
    names: dict[int, int] = {}
    for path in passing:  # in order of execution, so that what one reads has its name already
        for read, write in zip(graph[path].reads, graph[path].writes, strict=True):
            names[write] = names.get(read, read)

    def renamed(labels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(names.get(label, label) for label in labels)

    return {
        path: dataclasses.replace(
            labels, reads=renamed(labels.reads), writes=renamed(labels.writes)
        )
        for path, labels in graph.items()
    }


def identity_kernel(shape: tuple[int, ...]) -> Array:
    """The kernel that hands each channel on: 1 in the middle of its window. `[*spatial, I, O]`.

    Args:
      shape: of the kernel, its spatial sizes odd. `O` is `I` times the number of groups.
    """
    *spatial, inputs, outputs = shape
    middle = tuple(size // 2 for size in spatial)
    channels = np.arange(outputs)
    return jnp.zeros(shape).at[(*middle, channels % inputs, channels)].set(1.0)
