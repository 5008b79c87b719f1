"""Choose channels once for all layers that share them.

A rule fits kernels one by one. A layer may then keep other inputs than the outputs that the layer
before it keeps, which breaks what the source has learned. Here each target channel gets one source
channel, and every kernel, bias, norm and running statistic follows it: through residual adds,
concatenations, gates, grouped and depthwise convolutions, and flattening.

Words: a *space* is a set of source channels from which the outputs of some target layer are chosen.
Target channels are numbered within it: the q-th one gets the q-th kept source channel.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from tlv_jax.errors import check_option
from tlv_jax.layers.channels import UNKNOWN, ChannelGraph
from tlv_jax.types import LayerPair

NONE = -1  # a place that gets no channel of the source


@dataclasses.dataclass(frozen=True)
class ConsistentChannels:
    """Makes a method choose channels once for all layers that share them.

    Attributes:
      rank: which source channels are kept where there are too many: those with the largest
        `variance` or absolute sum (`magnitude`) of weights over all layers that write them; those
        with the largest absolute sum in the first such layer, over the inputs that it keeps
        (`trace`, as DPIAT's rule of that name); or the `first`.
      grow: what target channels get where the source has too few. `init` leaves them their initial
        weights. `copy` gives them the source's channels again, and divides the weights that read a
        channel by the number of its copies, so that the function stays the same (Net2Net, arXiv
        1511.05641).
    """

    rank: Literal["variance", "magnitude", "trace", "first"] = "variance"
    grow: Literal["init", "copy"] = "init"

    def __post_init__(self) -> None:
        """Raises an `OptionError` for unknown values."""
        check_option("rank", self.rank, ("variance", "magnitude", "trace", "first"))
        check_option("grow", self.grow, ("init", "copy"))


@dataclasses.dataclass(frozen=True)
class Space:
    """Source channels from which target channels are chosen.

    Attributes:
      size: number of source channels.
      wanted: number of target channels.
      writers: paths of the source layers whose kernels rank them.
      first: paths of the first source and target layer that write them.
    """

    size: int
    wanted: int
    writers: tuple[str, ...]
    first: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Which entry of a source axis each entry of a target axis gets.

    Attributes:
      space: number of the space, per entry; -1 for an entry in no space.
      channel: number within the space, per entry.
      places: for each space used, the places of its channels along the source axis, with one column
        for each time that a channel occurs; -1 for nowhere.
      occurrence: which of these columns, per entry.
      own: whether the layer ranks its own channels, because its neighbours' do not lead here.
    """

    space: tuple[int, ...]
    channel: tuple[int, ...]
    places: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]
    occurrence: tuple[int, ...]
    own: bool


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The two channel axes of one pair of layers; both are the same for a norm."""

    target: str
    reads: Axis
    writes: Axis
    source_groups: int
    target_groups: int


@dataclasses.dataclass(frozen=True)
class ChannelPlan:
    """How the channels of all pairs of a plan are chosen; static.

    Attributes:
      rank: of `ConsistentChannels`.
      grow: of `ConsistentChannels`.
      spaces: the spaces, by number.
      layers: one entry for each pair.
      consistent: the share of the target's channel axes that follow their neighbours.
    """

    rank: str
    grow: str
    spaces: tuple[Space, ...]
    layers: tuple[LayerChannels, ...]
    consistent: float


def plan_channels(
    pairs: Sequence[LayerPair],
    channels: ConsistentChannels,
    source_graph: ChannelGraph,
    target_graph: ChannelGraph,
) -> ChannelPlan:
    """Follows the channels of both networks along the matched pairs.

    A target layer that shares its outputs with no earlier layer opens a space: it gets the channels
    that its source writes. Whatever reads those outputs, or adds to them, looks its channels up
    there. Where the two graphs differ, and the source layer lacks these channels, the layer ranks
    its own as a rule would. Channels that no layer wrote, such as an image's, keep their order if
    both layers have equally many.

    Args:
      pairs: of the plan, in the target's order.
      channels: how to choose.
      source_graph: the channels of the source network.
      target_graph: the channels of the target network.
    """
    # For each target label its space, and its number there.
    places: dict[int, tuple[int, int]] = {UNKNOWN: (0, 0)}
    spaces: list[tuple[tuple[int, ...], int, list[str], tuple[str, str]]] = [
        ((UNKNOWN,), 1, [], ("", ""))
    ]
    writers: dict[tuple[int, ...], list[str]] = {}
    labelled = [
        (pair, source_graph[pair.source.path], target_graph[pair.target.path]) for pair in pairs
    ]
    for pair, source, _ in labelled:
        if pair.source.kind != "norm" and pair.source.path not in writers.get(source.writes, ()):
            writers.setdefault(source.writes, []).append(pair.source.path)
    layers = []
    for pair, source, target in labelled:
        given, wanted = _written(source.writes), dict.fromkeys(_written(target.writes))
        if given and wanted and not any(label in places for label in wanted):
            places |= {label: (len(spaces), number) for number, label in enumerate(wanted)}
            first = pair.source.path, pair.target.path
            spaces.append((given, len(wanted), writers.get(given, []), first))
        layers.append(
            LayerChannels(
                pair.target.path,
                reads=_axis(target.reads, source.reads, places, spaces),
                writes=_axis(target.writes, source.writes, places, spaces),
                source_groups=pair.source.groups,
                target_groups=pair.target.groups,
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


def _written(labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(label for label in labels if label != UNKNOWN)


def _axis(
    target: Sequence[int],
    source: Sequence[int],
    places: Mapping[int, tuple[int, int]],
    spaces: Sequence[tuple[tuple[int, ...], int, list[str], tuple[str, str]]],
) -> Axis:
    standing: dict[int, list[int]] = {}
    for place, label in enumerate(source):
        standing.setdefault(label, []).append(place)
    lost = target.count(UNKNOWN) != source.count(UNKNOWN)
    nothing = NONE, NONE
    known = [
        nothing if lost and label == UNKNOWN else places.get(label, nothing) for label in target
    ]
    seen: dict[int, int] = {}
    occurrence = []
    for label in target:
        occurrence.append(seen.get(label, 0))
        seen[label] = occurrence[-1] + 1
    used = sorted({space for space, _ in known} - {NONE})
    columns = max((len(where) for where in standing.values()), default=1)
    nowhere = (NONE,) * columns
    tables = {
        space: tuple((*standing.get(label, ()), *nowhere)[:columns] for label in spaces[space][0])
        for space in used
    }
    found = sum(any(row[0] != NONE for row in table) for table in tables.values())
    return Axis(
        space=tuple(space for space, _ in known),
        channel=tuple(number for _, number in known),
        places=tuple(tables.items()),
        occurrence=tuple(min(number, columns - 1) for number in occurrence),
        own=2 * found < len(tables) or not tables,
    )
