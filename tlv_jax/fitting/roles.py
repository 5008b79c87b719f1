"""What each conv does in its network, as far as a fit asks. Shapes alone.

A state is what a network carries past its layers: the sum that residual branches add to, or the
output of a layer that no activation function follows, such as the projection of a bottleneck.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tlv_jax.layers.channels import UNKNOWN
from tlv_jax.network import Network
from tlv_jax.types import Layer

Labels = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Role:
    """What a conv does.

    Attributes:
      layer: the conv.
      position: in order of execution, among convs and dense layers.
      reads: the channels that it reads.
      space: the channels that it writes. Convs with the same add to the same state.
      norm: the norm that reads this conv alone, if there is one.
      level: how often the size of the images is halved, up to its output.
      reader: path of the next conv or dense layer that reads any of its channels, if what it reads
        is on a grid, or averaged over one: not tokens, nor all places in a row.
      reader_level: that of the reader, if this is a conv.
      reads_all: path of the next such layer that is not depthwise.
      depthwise: whether it writes the channels that it reads.
      activated: whether an activation function stands before the reader.
      state: whether it writes to a state.
      block: for a state, the number of its block among those that write to it, from 0.
      end: the next conv after it that writes to a state.
    """

    layer: Layer
    position: int
    reads: Labels
    space: Labels
    norm: Layer | None
    level: int
    reader: str | None
    reader_level: int
    reads_all: str | None
    depthwise: bool
    activated: bool
    state: bool
    block: int = 0
    end: "Role | None" = None


def roles_of(network: Network) -> dict[str, Role]:
    """The roles of all convs but the head and those of gates, by path, in order of execution."""
    graph = network.channels
    assert graph is not None
    kernels = [layer for layer in network.layers if layer.kind != "norm"]
    convs = _followed(network, kernels)
    writers: dict[Labels, int] = defaultdict(int)
    for layer in convs:
        writers[graph[layer.path].writes] += not _is_depthwise(network, layer)
    readers = _Readers(network, kernels)
    first = convs[0].size[0] * convs[0].strides[0] if convs else 1
    levels = {conv.path: round(math.log2(first / max(conv.size[0], 1))) for conv in convs}
    roles: dict[str, Role] = {}
    for layer in convs:
        space = graph[layer.path].writes
        reader, reads_all = readers.after(layer), readers.after(layer, full=True)
        if reader is not None and _is_flattened(graph[reader.path].reads):
            reader = None
        activated = reader is None or graph[reader.path].activated
        depthwise = _is_depthwise(network, layer)
        roles[layer.path] = Role(
            layer=layer,
            position=readers.positions[layer.path],
            reads=graph[layer.path].reads,
            space=space,
            norm=_norm_of(network, layer),
            level=levels[layer.path],
            reader=reader.path if reader and _reads_grid(reader, layer) else None,
            reader_level=levels.get(reader.path if reader else "", levels[layer.path]),
            reads_all=reads_all and reads_all.path,
            depthwise=depthwise,
            activated=activated,
            state=not depthwise and (writers[space] > 1 or not activated),
        )
    return _in_blocks(roles, readers)


def _followed(network: Network, kernels: Sequence[Layer]) -> list[Layer]:
    """The convs that a fit may follow: of a grid, and neither the head nor gates."""
    convs = [layer for layer in kernels[:-1] if layer.kind == "conv" and layer.size]
    normed = [_norm_of(network, layer) is not None for layer in convs]
    last = max((n for n, layer in enumerate(convs) if math.prod(layer.size) > 1), default=0)
    # Among normed convs those without a norm, on a grid of one place, are of gates or heads; before
    # a larger grid, all are of gates.
    most = sum(normed) * 2 >= len(convs)
    return [
        layer
        for number, (layer, has_norm) in enumerate(zip(convs, normed, strict=True))
        if has_norm or not (math.prod(layer.size) == 1 and (most or number < last))
    ]


def _norm_of(network: Network, conv: Layer) -> Layer | None:
    """The first norm that reads one conv alone, with no pooling between."""
    norms = (layer for layer in network.layers if layer.kind == "norm")
    alone = (norm for norm in norms if norm.inputs == (conv.path,))
    return next((norm for norm in alone if norm.size == conv.size), None)


def _is_depthwise(network: Network, layer: Layer) -> bool:
    assert network.channels is not None
    labels = network.channels[layer.path]
    return layer.groups > 1 and labels.reads == labels.writes


def _is_flattened(reads: Labels) -> bool:
    """Whether a layer reads all places of a grid in a row, and so each channel several times."""
    return len(set(reads) - {UNKNOWN}) < len(reads) - reads.count(UNKNOWN)


def _reads_grid(reader: Layer, conv: Layer) -> bool:
    """Whether what a layer reads of a conv is on its grid, a coarser one, or averaged."""
    # Tokens have one axis, or are of windows.
    ranks = (0, len(conv.size))
    finer = any(a > b for a, b in zip(reader.size, conv.size, strict=False))
    return reader.kind == "conv" or (len(reader.size) in ranks and not finer)


class _Readers:
    """Which layers read what a layer writes."""

    def __init__(self, network: Network, kernels: Sequence[Layer]) -> None:
        assert network.channels is not None
        self.graph, self.kernels = network.channels, kernels
        self.positions = {layer.path: number for number, layer in enumerate(kernels)}
        self.full = [not _is_depthwise(network, layer) for layer in kernels]
        self.by_label: dict[int, list[int]] = defaultdict(list)
        for number, layer in enumerate(kernels):
            for label in set(self.graph[layer.path].reads) - {UNKNOWN}:
                self.by_label[label].append(number)

    def of(self, space: Labels) -> list[int]:
        """Positions of all layers that read a channel of the space, in order."""
        return sorted({number for label in space for number in self.by_label.get(label, ())})

    def after(self, layer: Layer, *, full: bool = False) -> Layer | None:
        """The next layer that reads what a layer writes; with `full` the next not depthwise."""
        position = self.positions[layer.path]
        for number in self.of(self.graph[layer.path].writes):
            if number > position and (self.full[number] or not full):
                return self.kernels[number]
        return None


def _in_blocks(roles: Mapping[str, Role], readers: _Readers) -> dict[str, Role]:
    """Numbers the blocks that write to each state, and finds where each conv's block ends."""
    last: dict[Labels, Role] = {}
    blocks: dict[str, int] = {}
    for path, role in roles.items():
        if role.state:
            blocks[path] = 0
            before = last.get(role.space)
            if before is not None:
                # Convs with no reader between them, as of a branch and its shortcut, share a block.
                apart = any(
                    before.position < number <= role.position for number in readers.of(role.space)
                )
                blocks[path] = blocks[before.layer.path] + apart
            last[role.space] = role
    ended: dict[str, Role] = {}
    end: Role | None = None
    for path, role in reversed(list(roles.items())):
        ended[path] = dataclasses.replace(role, block=blocks.get(path, 0), end=end)
        end = ended[path] if role.state else end
    return {path: ended[path] for path in roles}
