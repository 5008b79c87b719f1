"""Follow every channel of a network from the layer that writes it to the layers that read it.

The network's program is walked once with labels in place of activations. A convolution or dense
layer gives each of its outputs a new label. Norms, activations, poolings, reshapes, slices,
concatenations and depthwise convolutions pass labels on. A residual add or a gate makes two labels
one channel. Nothing is computed.

The labels of an activation are an array of its rank, compressed: an axis along which they do not
change has length 1, whatever its size. So memory does not grow with the batch or the image.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tlv_jax.layers.values import Use, Value, merge
from tlv_jax.types import Layer

UNKNOWN = -1
# These mix the elements along one axis without a change of its size.
SORTED = frozenset({"sort", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"})


@dataclasses.dataclass(frozen=True)
class LayerLabels:
    """The channels of one layer. Equal labels, in any layers, are one channel.

    Attributes:
      reads: labels of all inputs, `[I * groups]`; -1 where unknown.
      writes: labels of the outputs, `[O]`. A norm writes what it reads.
      stays: whether each output stands where the middle of its window does: stride 1, odd windows,
        and equal padding on both sides that keeps the size.
      gated: whether its output is multiplied with that of another layer.
      activated: of a layer with a kernel: whether an activation function has been applied to what
        it reads.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    stays: bool = False
    gated: bool = False
    activated: bool = False


ChannelGraph = Mapping[str, LayerLabels]
"""The labels of each layer, by path."""


class ChannelLabels:
    """Numbers the channels of a network, and says which of them are one."""

    def __init__(self) -> None:
        # Union-find: each label's parent is an older label of the same channel, or itself.
        self.parents: list[int] = []
        self.found: dict[str, tuple[np.ndarray, np.ndarray, bool]] = {}  # reads, writes, stays
        self.gated: set[str] = set()
        self.activated: set[str] = set()

    def graph(self, layers: Iterable[Layer]) -> ChannelGraph:
        """The labels found for each of these layers."""
        # UNKNOWN, as an index, is the last entry.
        roots = np.array([*map(self._root, range(len(self.parents))), UNKNOWN])
        graph: dict[str, LayerLabels] = {}
        for layer in layers:
            # A norm of the network's input scales what no layer has written.
            nowhere = np.full(layer.shape[-1], UNKNOWN)
            reads, writes, stays = self.found.get(layer.path, (nowhere, nowhere, False))
            read, written = (tuple(roots[labels].tolist()) for labels in (reads, writes))
            flags = layer.path in self.gated, layer.path in self.activated
            graph[layer.path] = LayerLabels(read, written, stays, *flags)
        return graph

    def written(
        self, path: str, use: Use, labels: Any, before: Sequence[int], after: Sequence[int]
    ) -> np.ndarray:
        """Labels the result of a layer with a kernel; notes what it reads and writes."""
        reads = _along(labels, use.reads, before)
        outputs = use.layer.shape[-1]
        depthwise = use.layer.groups == len(reads) == outputs and UNKNOWN not in reads
        if depthwise:
            writes = reads
        else:
            writes = np.arange(len(self.parents), len(self.parents) + outputs)
            self.parents.extend(writes.tolist())
        # One kernel at several places reads and writes the same channels everywhere.
        first = self.found.setdefault(path, (reads, writes, use.stays))
        self._unite(first[0], reads)
        self._unite(first[1], writes)
        return writes.reshape([n if axis in use.writes else 1 for axis, n in enumerate(after)])

    def normed(self, path: str, size: int, operands: Sequence[Value]) -> None:
        """Notes the channels that a norm scales."""
        for labels in (value.labels for value in operands if value.labels is not None):
            axes = [axis for axis, length in enumerate(labels.shape) if length == size]
            if axes and path not in self.found:
                scaled = _along(labels, axes[-1:], labels.shape)
                self.found[path] = scaled, scaled, False

    def after(self, equation: Any, operands: Sequence[Value]) -> list[np.ndarray | None]:
        """The labels of each result of an operation on activations."""
        name, params = equation.primitive.name, equation.params
        before = [variable.aval.shape for variable in equation.invars]
        after = equation.outvars[0].aval.shape
        given = [value.labels for value in operands]
        if name == "split" and given[0] is not None:
            cuts = np.cumsum(params["sizes"])[:-1]
            parts = np.split(np.broadcast_to(given[0], before[0]), cuts, params["axis"])
            return [_compressed(part) for part in parts]
        if len(equation.outvars) > 1 or all(labels is None for labels in given):
            return [None] * len(equation.outvars)
        match name:
            case "concatenate":
                axis = params["dimension"]
                return [_concatenated(given, [shape[axis] for shape in before], axis)]
            case "stack":  # a concatenation along a new axis
                axis = params["axis"]
                parts = [None if part is None else np.expand_dims(part, axis) for part in given]
                return [_concatenated(parts, [1] * len(parts), axis)]
            case "dot_general":
                return [_mixed(given, params["dimension_numbers"], len(after))]
        moved = None if given[0] is None else _moved(name, params, given[0], before[0], after)
        return [self._elementwise(equation, operands) if moved is None else moved]

    def _elementwise(self, equation: Any, operands: Sequence[Value]) -> np.ndarray | None:
        """Elements at one place become one channel; some axes may change: a window that slides."""
        name, params = equation.primitive.name, equation.params
        after = equation.outvars[0].aval.shape
        along = params.get("axis", params.get("dimension")) if name in SORTED else None
        labels: np.ndarray | None = None
        for variable, value in zip(equation.invars, operands, strict=True):
            before = variable.aval.shape
            if value.labels is None or len(before) != len(after):
                continue
            changed = [axis for axis, n in enumerate(after) if n != before[axis] or axis == along]
            other = _shared(value.labels, changed)
            if labels is None:
                labels = other
                continue
            labels, other = np.broadcast_arrays(labels, other)
            if self._unite(labels, other) and name == "mul":
                self.gated.update(merge(operands).feeds)
            # Any of the two will do, but UNKNOWN, the smallest, only where neither is known.
            labels = np.maximum(labels, other)
        return labels

    def _unite(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Makes the channels of two activations the same; returns whether any were not."""
        differ = (first != UNKNOWN) & (second != UNKNOWN) & (first != second)
        # Most pairs of labels meet at many places.
        pairs = np.unique(np.stack([first[differ], second[differ]]), axis=1)
        for label, other in pairs.T.tolist():
            a, b = self._root(label), self._root(other)
            self.parents[max(a, b)] = min(a, b)
        return pairs.size > 0

    def _root(self, label: int) -> int:
        """The oldest label of a channel. Shortens the way to it for later calls."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label


def _shared(labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Shortens axes to length 1; labels that change along them become unknown.

    Padding, which has no label, does not count as a change.
    """
    axes = tuple(axes)
    highest = labels.max(axes, keepdims=True)
    # All axes at once: what is unknown since it changes along one is no padding of the next.
    same = ((labels == highest) | (labels == UNKNOWN)).all(axes, keepdims=True)
    return np.where(same, highest, UNKNOWN)


def _along(labels: np.ndarray | None, axes: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The labels along some axes, in this order, flattened; along others they must not change."""
    extents = [sizes[axis] for axis in axes]
    if labels is None:
        return np.full(np.prod(extents, dtype=int), UNKNOWN)
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    kept = _shared(labels, others).transpose(*axes, *others)
    return np.broadcast_to(kept.reshape(kept.shape[: len(axes)]), extents).reshape(-1)


def _compressed(labels: np.ndarray) -> np.ndarray:
    """Shortens every axis along which labels do not change to length 1."""
    for axis in range(labels.ndim):
        first = labels[(slice(None),) * axis + (slice(1),)]
        # What was broadcast has stride 0: no need to compare it, which would take long.
        if labels.strides[axis] == 0 or (labels == first).all():
            labels = first
    return labels


def _concatenated(
    parts: Sequence[np.ndarray | None], sizes: Sequence[int], axis: int
) -> np.ndarray:
    """The labels of concatenated activations; only the joined axis is written out."""
    rank = max(part.ndim for part in parts if part is not None)
    known = [np.full([1] * rank, UNKNOWN) if part is None else part for part in parts]
    # The largest extent along each other axis, over all parts.
    common = np.max([part.shape for part in known], axis=0)
    whole = [
        np.broadcast_to(part, (*common[:axis], size, *common[axis + 1 :]))
        for part, size in zip(known, sizes, strict=True)
    ]
    return _compressed(np.concatenate(whole, axis))


def _mixed(given: Sequence[np.ndarray | None], numbers: Any, rank: int) -> np.ndarray | None:
    """The labels of a product of two activations (attention) that are not summed over."""
    # Rarely more than one side has labels left: of attention its values, not its weights.
    for side in (1, 0):
        labels = given[side]
        contracted, batched = (axes[side] for axes in numbers)
        labels = None if labels is None else _shared(labels, contracted)
        if labels is None or (labels == UNKNOWN).all():
            continue
        free = [axis for axis in range(labels.ndim) if axis not in (*contracted, *batched)]
        labels = labels.transpose(*batched, *free, *contracted)
        # The result has the batch axes, then the free ones of the left and of the right side.
        sizes = [*labels.shape[: len(batched) + len(free)]]
        place = len(batched) if side == 1 else len(sizes)
        sizes[place:place] = [1] * (rank - len(sizes))
        return labels.reshape(sizes)
    return None


def _moved(
    name: str, params: Any, labels: np.ndarray, before: Sequence[int], after: Sequence[int]
) -> np.ndarray | None:
    """The labels after an operation that moves or picks elements of one activation; else None."""
    match name:
        case "reshape" | "squeeze" | "expand_dims":
            return _reshaped(labels, before, after)
        case "transpose":
            return labels.transpose(params["permutation"])
        case "rev":
            return np.flip(labels, params["dimensions"])
        case "reduce_sum" | "reduce_max" | "reduce_min" | "reduce_and" | "reduce_or":
            axes = tuple(params["axes"])
            return _shared(labels, axes).squeeze(axes)
        case "broadcast_in_dim":
            sizes = np.ones(len(after), int)
            sizes[list(params["broadcast_dimensions"])] = labels.shape
            return labels.reshape(sizes)
        case "slice":
            strides = params["strides"] or [None] * len(after)
            window = map(slice, params["start_indices"], params["limit_indices"], strides)
            return _compressed(np.broadcast_to(labels, before)[tuple(window)])
        case "gather":
            # Labels stay along axes that are taken whole; along others they must not change.
            taken, numbers = params["slice_sizes"], params["dimension_numbers"]
            picked = [axis for axis, size in enumerate(before) if taken[axis] != size]
            gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
            sizes = np.ones(len(after), int)
            labels = _shared(labels, picked)
            sizes[list(numbers.offset_dims)] = np.delete(labels.shape, gone)
            return labels.reshape(sizes)
    return None


def _reshaped(labels: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """The labels after a reshape. Axes along which they do not change stay short if possible."""
    # Cut both shapes where as many elements lie to the left: a reshape mixes axes between two cuts.
    ends, new_ends = np.cumprod(before), np.cumprod(after)
    cuts = np.intersect1d(ends, new_ends)
    part, new_part = np.searchsorted(cuts, ends), np.searchsorted(cuts, new_ends)
    # Labels must be written out in parts that have an axis along which they change.
    written = {n for n, length in zip(part, labels.shape, strict=True) if length > 1}
    extents = [size if n in written else 1 for n, size in zip(part, before, strict=True)]
    sizes = [size if n in written else 1 for n, size in zip(new_part, after, strict=True)]
    return _compressed(np.broadcast_to(labels, extents).reshape(sizes))
