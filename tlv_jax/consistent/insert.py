"""Give a deeper network the function of a shallower one (Net2Net, arXiv 1511.05641, section 2.3).

The matcher uses each source layer once and in order. The target layers left over are inserted ones.
They are initialized so that they change nothing: in a plain network as identities, in a residual
network so that their branch adds zero.

Words: a *kernel layer* is a conv or dense layer. A *branch* is what a residual add joins with the
layers before it.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from tlv_jax.layers.channels import UNKNOWN, ChannelGraph, LayerLabels
from tlv_jax.types import Layer

GATED = "what it would add is multiplied with another layer's output"
# After so many batches (`count`), debiasing an average changes nothing.
IDENTITY = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0, "count": 2**20}


@dataclasses.dataclass(frozen=True)
class Inserted:
    """A target layer without a source that is made to change nothing.

    Attributes:
      layer: of the target.
      role: `identity` passes its inputs on; `zero` ends a branch that adds nothing.
    """

    layer: Layer
    role: Literal["identity", "zero"]

    @property
    def constants(self) -> list[tuple[str, float]]:
        """`(leaf path, value)` of each leaf that is filled with one value."""
        weight = "scale" if self.layer.kind == "norm" else "kernel"
        leaves = ((weight, self.layer.weight), *self.layer.vectors)
        if self.role == "zero":
            return [(path, 0.0) for name, path in leaves if name in ("kernel", "scale", "bias")]
        # The kernel of an identity is `tlv_jax.consistent.apply.identity_kernel`.
        return [(path, IDENTITY[name]) for name, path in leaves if name != "kernel"]


@dataclasses.dataclass(frozen=True)
class Insertions:
    """What happens to target layers without a source.

    Attributes:
      inserted: those that are made to change nothing, in order of execution.
      reasons: by path, why the others stay as they are.
      graph: the target's channels. What an identity writes is what it reads.
    """

    inserted: tuple[Inserted, ...]
    reasons: Mapping[str, str]
    graph: ChannelGraph


def plan_insertions(
    layers: Sequence[Layer], left: Sequence[Layer], graph: ChannelGraph
) -> Insertions:
    """Decides how target layers without a source (`left`) can leave the function as it is.

    From the end of the network to its start: a layer whose outputs only reach branches that add
    nothing stays as it is, so that it can learn. Where a layer adds to a matched layer, its norm
    (or else its kernel) becomes zero. Any other becomes an identity, together with its norm.

    An identity is exact if its inputs went through the same activation as its outputs, and that
    activation, such as ReLU, changes them only once. Shapes do not show this. A norm divides by
    sqrt(1 + epsilon), an error of 5e-6 for the usual 1e-5. In training it uses the statistics of
    its batch and is no identity (the paper would estimate them from data). Branches that add
    nothing are exact in both modes.
    """
    added = {layer.path: layer for layer in left}
    reasons: dict[str, str] = {}
    users = {path: [user for user in layers if path in user.inputs] for path in added}
    adding = _adding(layers, added, graph)
    roles: dict[str, Inserted] = {}
    quiet: set[str] = set()  # their outputs reach nothing
    for path in reversed([layer.path for layer in layers if layer.path in added]):
        layer, labels = added[path], graph[path]
        norms = [
            user.path
            for user in users[path]
            if user.path in added and user.kind == "norm" and user.inputs == (path,)
        ]
        if users[path] and quiet.issuperset(user.path for user in users[path]):
            quiet.add(path)
            reasons[path] = "inserted, within a branch that adds nothing"
        elif path in adding and not labels.gated and not norms:
            quiet.add(path)
            roles[path] = Inserted(layer, "zero")
            reasons[path] = "inserted, at the end of a branch that adds nothing"
        elif why := GATED if path in adding else _not_identity(layer, labels, roles, norms):
            reasons[path] = f"inserted, but {why}"
            # Behind a kernel that keeps its initial values, its norm keeps them too.
            for norm in norms:
                if roles.pop(norm, None):
                    reasons[norm] = "inserted, behind a layer that cannot be an identity"
        else:
            roles[path] = Inserted(layer, "identity")
    inserted = tuple(roles[layer.path] for layer in layers if layer.path in roles)
    passing = [entry.layer.path for entry in inserted if entry.role == "identity"]
    return Insertions(inserted, reasons, _passed_on(graph, passing))


def _adding(layers: Sequence[Layer], added: Collection[str], graph: ChannelGraph) -> set[str]:
    """The inserted kernel layers that add to outputs of matched ones, and the norms after them."""
    written: set[int] = set()
    adding: set[str] = set()
    for layer in layers:
        labels = graph[layer.path]
        if layer.path not in added:
            written.update(labels.writes)
        elif layer.kind == "norm":
            if len(layer.inputs) == 1 and adding.issuperset(layer.inputs):
                adding.add(layer.path)
        elif layer.groups < len(labels.reads) and written.issuperset(labels.writes):
            # A depthwise conv writes the channels that it reads, but adds nothing.
            adding.add(layer.path)
    return adding


def inserted_leaves(entry: Inserted) -> tuple[str, ...]:
    """The leaves that are replaced so that a layer changes nothing."""
    return tuple(dict.fromkeys((entry.layer.weight, *(path for path, _ in entry.constants))))


def _not_identity(
    layer: Layer, labels: LayerLabels, roles: Collection[str], norms: Sequence[str]
) -> str | None:
    """Why a layer cannot pass its inputs on; None if it can."""
    if layer.kind == "norm":
        known = {"mean", "var"} <= dict(layer.vectors).keys()
        return None if known else "it normalizes by its own input, so it cannot be an identity"
    if layer.index:
        return "its kernel is one of a stack and cannot be filled alone"
    if len(labels.reads) != len(labels.writes):
        return "it changes the number of channels"
    if not labels.stays:
        return "its stride, padding or even kernel shifts its input"
    if UNKNOWN in labels.reads:
        return "its input channels are not known"
    return None if set(norms) <= set(roles) else "the norm behind it cannot be an identity"


def _passed_on(graph: ChannelGraph, passing: Sequence[str]) -> ChannelGraph:
    """The graph where each channel that an identity writes is the one that it reads."""
    names: dict[int, int] = {}
    for path in passing:  # in order of execution: what one reads is already renamed
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
