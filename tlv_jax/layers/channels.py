"""Follow every channel of a network from the layer that writes it to the layers that read it.

The network's program is walked once with labels in place of activations. A convolution or dense
layer gives each of its outputs a new label. Norms, activations, poolings, reshapes, slices,
concatenations and depthwise convolutions pass labels on. A residual add or a gate makes two labels
one channel. Nothing is computed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlv_jax.layers.values import Kernel, Value
from tlv_jax.types import Layer

UNKNOWN = -1
SHAPED = frozenset({"reshape", "squeeze", "expand_dims"})
SORTED = frozenset({"sort", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"})
REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"})


@dataclasses.dataclass(frozen=True)
class LayerLabels:
    """The channels of one layer. Equal labels, in any layers, are one channel.

    Attributes:
      reads: labels of all inputs, `[I * groups]`; -1 where unknown.
      writes: labels of the outputs, `[O]`. A norm writes what it reads.
      groups: the number of feature groups.
      inputs: paths of the layers whose outputs reach this one with no other layer between.
      size: the spatial size of what it writes (of a norm: that of the layer before); empty if there
        is none.
      stays: whether each output stands where the middle of its window does: stride 1, odd windows,
        and equal padding on both sides that keeps the size.
      gated: whether its output is multiplied with that of another layer.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    groups: int = 1
    inputs: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    stays: bool = False
    gated: bool = False


ChannelGraph = Mapping[str, LayerLabels]
"""The labels of each layer, by path."""


class ChannelLabels:
    """Numbers the channels of a network, and says which of them are one.

    The labels of an activation are an array of its rank. An axis along which they do not change has
    length 1.
    """

    def __init__(self) -> None:
        """Starts without channels."""
        self.parents: list[int] = []
        self.found: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = {}
        self.windows: dict[str, tuple[tuple[int, ...], bool]] = {}  # size and stays
        self.gated: set[str] = set()

    def graph(self, layers: Mapping[str, Layer]) -> ChannelGraph:
        """The labels found for each of these layers."""
        roots = np.array([self._root(label) for label in range(len(self.parents))] + [UNKNOWN])
        graph: dict[str, LayerLabels] = {}
        for path, layer in layers.items():
            # A norm of the network's input scales what no layer has written.
            nowhere = np.full(layer.shape[-1], UNKNOWN)
            reads, writes, groups = self.found.get(path, [(nowhere, nowhere, 1)])[0]
            inputs = layer.inputs
            before = graph[inputs[0]].size if inputs and inputs[0] in graph else ()
            size, stays = self.windows.get(path, (before, False))
            graph[path] = LayerLabels(
                tuple(roots[reads].tolist()),
                tuple(roots[writes].tolist()),
                groups,
                inputs=inputs,
                size=size,
                stays=stays,
                gated=path in self.gated,
            )
        return graph

    def after(self, equation: Any, operands: Sequence[Value]) -> list[np.ndarray | None]:
        """The labels of each result of an operation on activations."""
        if len(equation.outvars) == 1:
            return [self._labels(equation, operands)]
        whole = operands[0].labels
        if equation.primitive.name != "split" or whole is None:
            return [None] * len(equation.outvars)
        axis, sizes = equation.params["axis"], equation.params["sizes"]
        whole = np.broadcast_to(whole, equation.invars[0].aval.shape)
        return [_compressed(part) for part in np.split(whole, np.cumsum(sizes)[:-1], axis)]

    def written(
        self, equation: Any, kernel: Kernel, path: str, activation: Value, side: int
    ) -> np.ndarray:
        """Labels the outputs of a layer with a kernel; notes what it reads."""
        shape, outputs = equation.outvars[0].aval.shape, kernel.shape[-1]
        sizes = equation.invars[side].aval.shape
        numbers = equation.params["dimension_numbers"]
        if kernel.kind == "conv":
            channels = numbers.lhs_spec[1]
            reads = self._along(activation.labels, (channels,), sizes[channels])
            depthwise = kernel.groups == len(reads) == outputs and (reads != UNKNOWN).all()
            writes = reads if depthwise else self._fresh(outputs)
            labels = _placed(writes, len(shape), numbers.out_spec[1])
            window = tuple(shape[axis] for axis in numbers.out_spec[2:]), _stays(equation, kernel)
        else:
            contracted = numbers[0][side]
            reads = self._along(activation.labels, contracted, *(sizes[a] for a in contracted))
            writes = self._fresh(outputs)
            others = equation.invars[1 - side].aval.shape
            free = [n for axis, n in enumerate(others) if axis not in numbers[0][1 - side]]
            ones = (1,) * (len(shape) - len(free))
            labels = writes.reshape((*ones, *free) if side == 0 else (*free, *ones))
            window = shape[1:-1], True
        self.windows.setdefault(path, window)
        uses = self.found.setdefault(path, [])
        uses.append((reads, writes, kernel.groups))
        if len(uses) > 1:  # one kernel at several places: the same channels everywhere
            self._unite(writes, uses[0][1])
            self._unite(reads, uses[0][0])
        return labels

    def normed(self, path: str, size: int, operands: Sequence[Value]) -> None:
        """Notes the channels that a norm scales."""
        for value in operands:
            if value.labels is None:
                continue
            axes = [axis for axis, length in enumerate(value.labels.shape) if length == size]
            if axes and path not in self.found:
                labels = self._along(value.labels, (axes[-1],), size)
                self.found[path] = [(labels, labels, 1)]

    def _labels(self, equation: Any, operands: Sequence[Value]) -> np.ndarray | None:
        given = [value.labels for value in operands]
        if all(labels is None for labels in given):
            return None
        name, params = equation.primitive.name, equation.params
        before = [variable.aval.shape for variable in equation.invars]
        after = equation.outvars[0].aval.shape
        if name == "concatenate":
            return _concatenated(given, before, params["dimension"])
        if name == "stack":  # along a new axis
            axis = params["axis"]
            given = [None if part is None else np.expand_dims(part, axis) for part in given]
            before = [(*shape[:axis], 1, *shape[axis:]) for shape in before]
            return _concatenated(given, before, axis)
        if name == "dot_general":
            return self._mixed(equation, given)
        first = given[0]
        if name in SHAPED and first is not None:
            return _reshaped(first, before[0], after)
        if name == "transpose" and first is not None:
            return first.transpose(params["permutation"])
        if name == "broadcast_in_dim" and first is not None:
            shape = [1] * len(after)
            for axis, place in enumerate(params["broadcast_dimensions"]):
                shape[place] = first.shape[axis]
            return first.reshape(shape)
        if name == "slice" and first is not None:
            strides = params["strides"] or (1,) * len(after)
            limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            window = tuple(slice(*limit) for limit in limits)
            return _compressed(np.broadcast_to(first, before[0])[window])
        if name == "rev" and first is not None:
            return np.flip(first, params["dimensions"])
        if name == "gather" and first is not None:
            return self._gathered(first, before[0], params, len(after))
        if name in REDUCTIONS and first is not None:
            axes = tuple(params["axes"])
            return self._constant(first, axes).max(axes)
        if len(after) != len(before[0]):
            return None
        # Elementwise, or along some axes: a window that slides, a sort.
        along = params.get("axis", params.get("dimension")) if name in SORTED else None
        labels: np.ndarray | None = None
        for other, shape in zip(given, before, strict=True):
            if other is None or len(shape) != len(after):
                continue
            sizes = enumerate(zip(shape, after, strict=True))
            changed = tuple(axis for axis, (n, m) in sizes if n != m or axis == along)
            other = self._constant(other, changed).max(changed, keepdims=True)
            if labels is not None and name == "mul" and _differ(labels, other):
                self.gated.update(path for value in operands for path in value.feeds)
            labels = other if labels is None else self._union(labels, other)
        return labels

    def _gathered(
        self, labels: np.ndarray, sizes: Sequence[int], params: Mapping[str, Any], rank: int
    ) -> np.ndarray:
        """Labels along the axes that a gather takes whole; along others they must not change."""
        taken, numbers = params["slice_sizes"], params["dimension_numbers"]
        moved = tuple(axis for axis, size in enumerate(sizes) if taken[axis] != size)
        labels = self._constant(labels, moved).max(moved, keepdims=True)
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        shape = [1] * rank
        kept = (length for axis, length in enumerate(labels.shape) if axis not in gone)
        for place, length in zip(numbers.offset_dims, kept, strict=True):
            shape[place] = length
        return labels.reshape(shape)

    def _mixed(self, equation: Any, given: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """The labels of a product of two activations (attention) that are not summed over."""
        contracted, batched = equation.params["dimension_numbers"]
        shapes = [variable.aval.shape for variable in equation.invars]
        free = [
            [a for a in range(len(shapes[s])) if a not in (*contracted[s], *batched[s])]
            for s in (0, 1)
        ]
        for side in (1, 0):
            labels = given[side]
            if labels is None:
                continue
            kept = self._constant(labels, contracted[side])
            if (kept == UNKNOWN).all():
                continue
            order = (*batched[side], *free[side])
            kept = kept.max(tuple(contracted[side]), keepdims=True)
            parts = [kept.shape[axis] for axis in order]
            kept = kept.transpose((*order, *contracted[side])).reshape(parts)
            count = len(batched[side])
            ones = (1,) * len(free[1 - side])
            shape = (*parts[:count], *ones, *parts[count:]) if side else (*parts, *ones)
            return kept.reshape(shape)
        return None

    def _along(self, labels: np.ndarray | None, axes: Sequence[int], *sizes: int) -> np.ndarray:
        """The labels along some axes, flattened; they must not change along the others."""
        count = int(np.prod(sizes))
        if labels is None:
            return np.full(count, UNKNOWN)
        others = tuple(axis for axis in range(labels.ndim) if axis not in axes)
        kept = self._constant(labels, others).max(others)
        order = np.argsort(np.argsort(axes))
        return np.broadcast_to(kept.transpose(order), sizes).reshape(-1)

    def _constant(self, labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Makes labels unknown that change along some axes; padding among them does not count."""
        axes = tuple(axes)
        highest = labels.max(axes, keepdims=True)
        # All axes at once: what is unknown since it changes along one is no padding of the next.
        same = ((labels == highest) | (labels == UNKNOWN)).all(axes, keepdims=True)
        return np.where(same, highest, UNKNOWN)

    def _union(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Makes the channels of two added activations the same."""
        first, second = np.broadcast_arrays(first, second)
        if first is not second:
            self._unite(first.reshape(-1), second.reshape(-1))
        return np.maximum(first, second) if (first == UNKNOWN).any() else first

    def _unite(self, first: np.ndarray, second: np.ndarray) -> None:
        known = (first != UNKNOWN) & (second != UNKNOWN) & (first != second)
        first, second = first[known], second[known]
        while len(first):
            # One partner for each label at a time: most have just one, met at many places.
            partner = np.full(len(self.parents), UNKNOWN)
            partner[first] = second
            for label in np.flatnonzero(partner != UNKNOWN).tolist():
                a, b = self._root(label), self._root(int(partner[label]))
                self.parents[max(a, b)] = min(a, b)
            left = partner[first] != second
            first, second = first[left], second[left]

    def _root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def _fresh(self, count: int) -> np.ndarray:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)


def _differ(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two activations hold channels of different layers."""
    first, second = np.broadcast_arrays(first, second)
    return bool(((first != second) & (first != UNKNOWN) & (second != UNKNOWN)).any())


def _stays(equation: Any, kernel: Kernel) -> bool:
    """Whether each output of a convolution stands where the middle of its window does."""
    params = equation.params
    dilated = zip(kernel.shape[:-2], params["rhs_dilation"], strict=True)
    kept = tuple((dilation * (size // 2),) * 2 for size, dilation in dilated)
    return (
        all(size % 2 for size in kernel.shape[:-2])
        and {*params["window_strides"], *params["lhs_dilation"]} <= {1}
        and tuple(map(tuple, params["padding"])) == kept
    )


def _placed(labels: np.ndarray, rank: int, axis: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = len(labels)
    return labels.reshape(shape)


def _compressed(labels: np.ndarray) -> np.ndarray:
    """Shortens every axis along which labels do not change to length 1."""
    for axis in range(labels.ndim):
        first = labels[(slice(None),) * axis + (slice(1),)]
        if labels.strides[axis] == 0 or (labels == first).all():
            labels = first
    return labels


def _reshaped(labels: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """The labels after a reshape. Axes along which they do not change stay short where possible."""
    extents: list[int] = []
    shape: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        # The next axes before and after that have the same total size.
        first, second, size, other = i, j, 1, 1
        while size != other or (i, j) == (first, second):
            if i < len(before) and (size <= other or j == len(after)):
                size, i = size * before[i], i + 1
            else:
                other, j = other * after[j], j + 1
        changes = any(length > 1 for length in labels.shape[first:i])
        extents += before[first:i] if changes else [1] * (i - first)
        shape += after[second:j] if changes else [1] * (j - second)
    return _compressed(np.broadcast_to(labels, extents).reshape(shape))


def _concatenated(
    parts: Sequence[np.ndarray | None], shapes: Sequence[Sequence[int]], axis: int
) -> np.ndarray:
    """The labels of concatenated activations; only the joined axis is written out."""
    known = [np.full([1] * len(shapes[0]), UNKNOWN) if part is None else part for part in parts]
    # The largest extent along each axis, over all parts.
    common = np.max([part.shape for part in known], axis=0)
    whole = [
        np.broadcast_to(part, (*common[:axis], shape[axis], *common[axis + 1 :]))
        for part, shape in zip(known, shapes, strict=True)
    ]
    return _compressed(np.concatenate(whole, axis))
