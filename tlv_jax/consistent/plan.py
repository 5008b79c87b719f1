"""Choose channels once for all layers that share them.

A rule fits kernels one by one. A layer may then keep other inputs than the outputs that the layer
before it keeps, which breaks what the source has learned. Here each target channel gets one source
channel, and every kernel, bias, norm and running statistic follows it: through residual adds,
concatenations, gates, grouped and depthwise convolutions, and flattening.

Words: a *space* is a set of source channels from which the outputs of some target layer are chosen.
The target's channels are numbered through all spaces.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from tlv_jax.errors import check_option
from tlv_jax.layers.channels import UNKNOWN, ChannelGraph
from tlv_jax.types import LayerPair

NONE = -2  # no channel of the source; -1 is the label of those that no layer wrote


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
class Axis:
    """Which entry of a source axis each entry of a target axis gets.

    Attributes:
      wanted: the number of each target entry's channel.
      given: the label of each source entry's channel.
      own: whether the layer ranks its own channels, because its neighbours' do not lead here.
    """

    wanted: tuple[int, ...]
    given: tuple[int, ...]
    own: bool


@dataclasses.dataclass(frozen=True)
class Space:
    """Source channels from which target channels are chosen.

    Attributes:
      given: labels of the source's channels.
      wanted: how many target channels.
      writers: paths of the source layers whose kernels rank them.
      reads: the inputs over which these kernels count; None for all.
    """

    given: tuple[int, ...]
    wanted: int
    writers: tuple[str, ...] = ()
    reads: Axis | None = None


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The two channel axes of one pair of layers; both are the same for a norm."""

    reads: Axis
    writes: Axis


@dataclasses.dataclass(frozen=True)
class ChannelPlan:
    """How the channels of all pairs of a plan are chosen; `rank` and `grow` as the method says.

    Attributes:
      spaces: in the order in which their channels are numbered.
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
    its own as a rule would.
    """
    writers: dict[tuple[int, ...], dict[str, None]] = defaultdict(dict)
    for pair in pairs:
        if pair.source.kind != "norm":
            writers[source_graph[pair.source.path].writes][pair.source.path] = None
    # Numbers 0 and 1 are no channel, and all channels that no layer wrote.
    spaces, count = [Space((NONE, UNKNOWN), 2)], 2
    offered = [{UNKNOWN}]  # by each space
    numbers = {UNKNOWN: (1, 0)}  # of each target label, with its space
    layers = []
    for pair in pairs:
        source, target = source_graph[pair.source.path], target_graph[pair.target.path]
        given = tuple(label for label in source.writes if label != UNKNOWN)
        wanted = dict.fromkeys(label for label in target.writes if label != UNKNOWN)
        opens = given and wanted and numbers.keys().isdisjoint(wanted)
        if opens:
            numbers |= {label: (count + n, len(spaces)) for n, label in enumerate(wanted)}
            offered.append(set(given))
        reads = _axis(target.reads, source.reads, numbers, offered)
        layers.append(LayerChannels(reads, _axis(target.writes, source.writes, numbers, offered)))
        if not opens:
            continue
        by, counted = tuple(writers.get(given, ())), None
        if channels.rank == "trace" and pair.source.kind != "norm":
            by = (pair.source.path,)
            # All inputs count in a grouped kernel, whose groups read different ones, and in one
            # that adds to what it reads: those channels are not chosen yet.
            if not reads.own and pair.source.groups == 1 and max(reads.wanted) < count:
                counted = reads
        spaces.append(Space(given, len(wanted), by, counted))
        count += len(wanted)
    axes = [axis for layer in layers for axis in (layer.reads, layer.writes)]
    share = sum(not axis.own for axis in axes) / max(len(axes), 1)
    return ChannelPlan(channels.rank, channels.grow, tuple(spaces), tuple(layers), share)


def _axis(
    target: tuple[int, ...],
    source: tuple[int, ...],
    numbers: Mapping[int, tuple[int, int]],
    offered: Sequence[set[int]],
) -> Axis:
    # Channels that no layer wrote, such as an image's, keep their order, if there are equally many.
    lost = UNKNOWN if target.count(UNKNOWN) != source.count(UNKNOWN) else None
    nothing = 0, None
    found = [nothing if label == lost else numbers.get(label, nothing) for label in target]
    used = {space for _, space in found if space is not None}
    shared = [space for space in used if not offered[space].isdisjoint(source)]
    # The layer ranks its own channels where most of the spaces that it reads do not lead here.
    own = not used or 2 * len(shared) < len(used)
    return Axis(tuple(number for number, _ in found), source, own)
