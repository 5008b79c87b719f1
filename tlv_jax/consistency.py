"""Choose channels once for all layers that share them.

A rule that fits kernels one by one keeps other inputs of a layer than the outputs that the layer
before it kept: what the source had learned to combine comes apart. Here each channel of the target
is given one channel of the source, and every kernel, bias, norm and running statistic follows it:
through residual adds, concatenations, gates, grouped and depthwise convolutions, and flattening.

Words: a *space* is a set of source channels that some target layer's outputs are chosen from. The
target's channels are numbered within it: its q-th channel is given the q-th kept one.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from tlv_jax.channels import ChannelGraph
from tlv_jax.types import Array, LayerPair

__all__ = [
    "Axis",
    "ChannelPlan",
    "ConsistentChannels",
    "LayerChannels",
    "Space",
    "Table",
    "axis_places",
    "copies_of",
    "gather_kernel",
    "kept_channels",
    "own_places",
    "plan_channels",
    "take_vector",
]

NONE = -1


@dataclasses.dataclass(frozen=True)
class ConsistentChannels:
    """Asks `plan_transfer` to choose channels once for all layers that share them.

    Attributes:
      source: from `trace_channels` of the source.
      target: from `trace_channels` of the target.
      rank: which source channels are kept where there are too many: those whose weights have the
        largest `variance` or absolute sum (`magnitude`) over all layers that write them; those with
        the largest absolute sum in the first such layer, over the inputs that it keeps (`trace`, as
        DPIAT's rule of that name); or the `first`.
      grow: what target channels are given where the source has too few: `init` leaves them their
        initial weights; `copy` gives them the source's channels once more, and divides the weights
        that read a channel by the number of its copies, so that the function stays (Net2Net,
        arXiv 1511.05641).
    """

    source: ChannelGraph
    target: ChannelGraph
    rank: Literal["variance", "magnitude", "trace", "first"] = "variance"
    grow: Literal["init", "copy"] = "init"


@dataclasses.dataclass(frozen=True)
class Table:
    """An array of integers that is hashed and compared quickly, and fits into JSON."""

    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, array: np.ndarray) -> "Table":
        """Packs an array as int32."""
        packed = np.ascontiguousarray(array, np.int32)
        return cls(tuple(packed.shape), base64.b85encode(packed.tobytes()).decode())

    def array(self) -> np.ndarray:
        """The array, int32."""
        return np.frombuffer(base64.b85decode(self.data), np.int32).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Space:
    """Source channels from which target channels are chosen.

    Attributes:
      size: number of source channels.
      wanted: number of target channels.
      writers: paths of the source layers by whose kernels they are ranked.
      first: paths of the source and the target layer that are the first to write them.
    """

    size: int
    wanted: int
    writers: tuple[str, ...]
    first: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Which entry of a source axis each entry of a target axis is given.

    Attributes:
      space: number of the space, per entry; -1 where the target's entry is none of any space.
      channel: number within the space, per entry.
      places: for each space used, where each of its channels stands along the source axis, one
        column for each time that it stands there; -1 for nowhere.
      occurrence: which of these columns, per entry.
      own: whether the layer ranks its own channels, since those of its neighbours do not lead here.
    """

    space: Table
    channel: Table
    places: tuple[tuple[int, Table], ...]
    occurrence: Table
    own: bool


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The two channel axes of one pair of layers; of a norm both are the same."""

    target: str
    reads: Axis
    writes: Axis
    source_groups: int
    target_groups: int


@dataclasses.dataclass(frozen=True)
class ChannelPlan:
    """How the channels of all pairs of a plan are chosen; static.

    Attributes:
      rank: see `ConsistentChannels`.
      grow: likewise.
      spaces: the spaces, by number.
      layers: one entry for each pair.
      consistent: the share of the target's channel axes that follow their neighbours.
    """

    rank: str
    grow: str
    spaces: tuple[Space, ...]
    layers: tuple[LayerChannels, ...]
    consistent: float


def plan_channels(pairs: Sequence[LayerPair], channels: ConsistentChannels) -> ChannelPlan:
    """Follows the channels of both networks along the matched pairs.

    A target layer whose outputs no earlier layer shares opens a space: it is given the channels
    that its source writes. Whatever reads those outputs, or adds to them, looks its channels up
    there. Where the source layer does not know them, because the two graphs differ, the layer ranks
    its own channels as a rule would.

    Args:
      pairs: of the plan, in the target's order.
      channels: both graphs, and how to choose.
    """
    places: dict[int, tuple[int, int]] = {}  # target label -> space, number
    spaces: list[tuple[tuple[int, ...], int, list[str], tuple[str, str]]] = []
    writers: dict[tuple[int, ...], list[str]] = {}
    labelled = [
        (pair, channels.source[pair.source.path], channels.target[pair.target.path])
        for pair in pairs
        if pair.source.path in channels.source and pair.target.path in channels.target
    ]
    for pair, source, _ in labelled:
        if pair.source.kind != "norm" and pair.source.path not in writers.get(source.writes, ()):
            writers.setdefault(source.writes, []).append(pair.source.path)
    layers = []
    for pair, source, target in labelled:
        if not any(label in places for label in target.writes):
            unique = list(dict.fromkeys(target.writes))
            places |= {label: (len(spaces), number) for number, label in enumerate(unique)}
            first = pair.source.path, pair.target.path
            spaces.append((source.writes, len(unique), writers.get(source.writes, []), first))
        layers.append(
            LayerChannels(
                pair.target.path,
                reads=_axis(target.reads, source.reads, places, spaces),
                writes=_axis(target.writes, source.writes, places, spaces),
                source_groups=source.groups,
                target_groups=target.groups,
            )
        )
    axes = [axis for layer in layers for axis in (layer.reads, layer.writes)]
    return ChannelPlan(
        rank=channels.rank,
        grow=channels.grow,
        spaces=tuple(
            Space(len(labels), wanted, tuple(by), first) for labels, wanted, by, first in spaces
        ),
        layers=tuple(layers),
        consistent=sum(not axis.own for axis in axes) / max(len(axes), 1),
    )


def _axis(
    target: Sequence[int],
    source: Sequence[int],
    places: Mapping[int, tuple[int, int]],
    spaces: Sequence[tuple[tuple[int, ...], int, list[str], tuple[str, str]]],
) -> Axis:
    standing: dict[int, list[int]] = {}
    for place, label in enumerate(source):
        standing.setdefault(label, []).append(place)
    known = [places.get(label, (NONE, NONE)) for label in target]
    seen: dict[int, int] = {}
    occurrence = []
    for label in target:
        occurrence.append(seen.get(label, 0))
        seen[label] = occurrence[-1] + 1
    used = sorted({space for space, _ in known} - {NONE})
    columns = max((len(where) for where in standing.values()), default=1)
    tables = []
    for space in used:
        table = np.full((len(spaces[space][0]), columns), NONE)
        for row, label in enumerate(spaces[space][0]):
            where = standing.get(label, []) if label != NONE else []
            table[row, : len(where)] = where
        tables.append((space, table))
    found = sum((table[:, 0] != NONE).any() for _, table in tables)
    return Axis(
        space=Table.of(np.array([space for space, _ in known])),
        channel=Table.of(np.array([number for _, number in known])),
        places=tuple((space, Table.of(table)) for space, table in tables),
        occurrence=Table.of(np.minimum(np.array(occurrence), columns - 1)),
        own=2 * found < len(tables) or not tables,
    )


def kept_channels(plan: ChannelPlan, kernels: Mapping[str, Array]) -> list[Array]:
    """For each space the source channel of each of its target channels, -1 for none. `[wanted]`.

    Args:
      plan: of the channels.
      kernels: source kernels `[*spatial, I, O]` by the paths of their layers.
    """
    kept: list[Array] = []
    layers = {layer.target: layer for layer in plan.layers}
    for space in plan.spaces:
        numbers = np.arange(space.wanted)
        if space.wanted > space.size:
            copies = numbers % space.size if plan.grow == "copy" else NONE
            kept.append(jnp.asarray(np.where(numbers < space.size, numbers, copies)))
        elif space.wanted < space.size and plan.rank != "first" and space.writers:
            if plan.rank == "trace":
                kernel = kernels[space.first[0]]
                worth = _traced_worth(kernel, layers[space.first[1]].reads, kept)
            else:
                worth = sum(_worth(kernels[path], plan.rank) for path in space.writers)
            best = jnp.argsort(worth, descending=True)[: space.wanted]
            kept.append(jnp.sort(best))
        else:
            kept.append(jnp.asarray(numbers))
    return kept


def _worth(kernel: Array, rank: str) -> Array:
    """What each output channel counts in one layer, as a share of the layer. `[O]`."""
    wide = kernel.astype(jnp.float32)
    axes = tuple(range(kernel.ndim - 1))
    worth = jnp.var(wide, axes) if rank == "variance" else jnp.abs(wide).sum(axes)
    return worth / jnp.maximum(worth.sum(), jnp.finfo(jnp.float32).tiny)


def _traced_worth(kernel: Array, reads: Axis, kept: Sequence[Array]) -> Array:
    """What each output channel counts over the inputs that are kept before it. `[O]`."""
    if not reads.own and kernel.shape[-2] > 1:
        chosen = axis_places(reads, kept, kept[0])
        taken = kernel[..., jnp.maximum(chosen, 0), :]
        kernel = jnp.where(jnp.broadcast_to((chosen != NONE)[:, None], taken.shape), taken, 0)
    return _worth(kernel, "magnitude")


def axis_places(axis: Axis, kept: Sequence[Array], own: Array) -> Array:
    """Where along the source's axis each entry of the target's stands; -1 for nowhere. `[n]`.

    Args:
      axis: of the plan.
      kept: of `kept_channels`.
      own: what to use where the layer ranks its own channels, `[n]`.
    """
    if axis.own:
        return own
    space, channel, occurrence = (
        table.array() for table in (axis.space, axis.channel, axis.occurrence)
    )
    result = jnp.full(len(space), NONE)
    for number, places in axis.places:
        entries = np.flatnonzero(space == number)
        chosen = kept[number][channel[entries]]
        stands = jnp.asarray(places.array())[chosen, occurrence[entries]]
        result = result.at[entries].set(jnp.where(chosen == NONE, NONE, stands))
    return result


def own_places(worth: Array, count: int, rank: str) -> Array:
    """The worthiest entries in their order, or all and -1 for the rest. `[n] -> [count]`."""
    size = len(worth)
    if count >= size or rank == "first":
        numbers = np.arange(count)
        return jnp.asarray(np.where(numbers < size, numbers, NONE))
    return jnp.sort(jnp.argsort(worth, descending=True)[:count])


def gather_kernel(
    layer: LayerChannels, reads: Array, writes: Array, source: Array, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Takes the chosen channels out of a source kernel.

    Args:
      layer: of the plan.
      reads: places along the source's inputs of all groups, `[I' * groups']`.
      writes: places along the source's outputs, `[O']`.
      source: `[*spatial, I, O]`.
      shape: `(I', O')`.

    Returns:
      `[*spatial, I', O']`, and which of its entries are the source's, `[I', O']`.
    """
    inputs, outputs = shape
    per_group = source.shape[-2]
    if layer.source_groups == layer.target_groups == 1:
        taken = jnp.take(source, jnp.maximum(reads, 0), axis=-2)
        taken = jnp.take(taken, jnp.maximum(writes, 0), axis=-1)
        return taken, (reads != NONE)[:, None] & (writes != NONE)[None, :]
    group = np.arange(outputs) // (outputs // layer.target_groups)
    reads = reads[group[None, :] * inputs + np.arange(inputs)[:, None]]
    source_group = writes // (source.shape[-1] // layer.source_groups)
    local = reads - source_group[None, :] * per_group
    inside = (reads != NONE) & (local >= 0) & (local < per_group) & (writes != NONE)[None, :]
    taken = source[..., jnp.clip(local, 0, per_group - 1), jnp.maximum(writes, 0)[None, :]]
    return taken, inside


def copies_of(places: Array, size: int) -> Array:
    """How many entries of the target were given the same entry of the source. `[n] -> [n]`."""
    counts = jnp.zeros(size + 1, jnp.float32).at[places].add(1.0)  # -1 counts at the end
    return jnp.where(places == NONE, 1.0, counts[places])


def take_vector(source: Array, places: Array, target: Array) -> Array:
    """The entries of a vector that were chosen, and the target's own elsewhere. `[n]`."""
    taken = source[jnp.maximum(places, 0)].astype(target.dtype)
    return jnp.where(places == NONE, target, taken)
