"""What the walk through a program knows about each value, and how operations change it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tlv_jax.types import Layer

# These may change the elements of a parameter, but not their places.
ELEMENTWISE = frozenset(
    {"abs", "add", "convert_element_type", "copy", "div", "exp", "max", "min", "mul", "neg", "rev"}
    | {"optimization_barrier", "reduce_precision", "sharding_constraint", "sqrt", "sub", "tanh"}
)

# Activation functions are made of these.
CURVED = frozenset(
    {"abs", "clamp", "erf", "exp", "expm1", "log1p", "logistic", "max", "min", "select_n", "tanh"}
)

# A norm takes one of its input's variance, if it does not know that of a data set.
ROOTS = frozenset({"pow", "rsqrt", "sqrt"})

Leaf = tuple[str, tuple[int, ...]]
"""A parameter's path, and the steps along its leading axes that `scan` has taken."""


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value in the program.

    Attributes:
      active: whether it depends on the function's inputs.
      leaves: the parameters that it depends on, if it is not active.
      view: the parameter whose elements it holds, where known.
      axes: of a view: for each axis that of the parameter at one step; None for one of size 1 that
        the parameter does not have.
      feeds: paths of the layers whose outputs reach it with no other layer between.
      curved: whether an activation function has been applied since the last layer with a kernel.
      rooted: whether a root was taken of what a layer wrote, since that layer.
      labels: the channel of each element, see `tlv_jax.layers.channels`.
      statistics: what it was centred and then divided with, as `(name, leaf path)`. They belong to
        a norm if its scale follows.
      array: what it holds, in a walk that computes, see `tlv_jax.layers.activations`.
    """

    active: bool = False
    leaves: tuple[Leaf, ...] = ()
    view: Leaf | None = None
    axes: tuple[int | None, ...] = ()
    feeds: tuple[str, ...] = ()
    curved: bool = False
    rooted: bool = False
    labels: Any = None
    statistics: tuple[tuple[str, str], ...] = ()
    array: Any = None


def merge(values: Sequence[Value]) -> Value:
    """One value for several operands, branches or steps."""
    return Value(
        active=any(value.active for value in values),
        # A dict, unlike a set, keeps the order.
        leaves=tuple(dict.fromkeys(leaf for value in values for leaf in value.leaves)),
        feeds=tuple(dict.fromkeys(path for value in values for path in value.feeds)),
        curved=any(value.curved for value in values),
        rooted=any(value.rooted for value in values if value.active),
    )


def is_curved(equation: Any, operands: Sequence[Value]) -> bool:
    """Whether an activation function has been applied to the result of an operation.

    What is spread over all places is the statistic of a norm or a gate, not what these are for.
    """
    after = equation.outvars[0].aval
    given = zip(equation.invars, operands, strict=True)
    whole = [value for variable, value in given if variable.aval.size >= after.size]
    return equation.primitive.name in CURVED or any(value.curved for value in whole)


def combine(equation: Any, operands: Sequence[Value]) -> Value:
    """The result of an operation on parameters alone."""
    for variable, value in zip(equation.invars, operands, strict=True):
        axes = _axes_after(equation, value.axes, variable.aval.shape) if value.view else None
        if axes is not None:  # centred or scaled by others, the elements of one stay in place
            return dataclasses.replace(merge(operands), view=value.view, axes=axes)
    return merge(operands)


def _axes_after(
    equation: Any, axes: tuple[int | None, ...], before: tuple[int, ...]
) -> tuple[int | None, ...] | None:
    """The axes of a view after one more operation; None if its elements are moved."""
    name, after = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "transpose":
        return tuple(axes[axis] for axis in equation.params["permutation"])
    if name in ELEMENTWISE and before == after:
        return axes
    if name not in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        return None
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    # Axes of size 1 may come and go: they order no elements, so any of them will do.
    large = (axis for axis, size in zip(axes, before, strict=True) if size != 1)
    small = (axis for axis, size in zip(axes, before, strict=True) if size == 1)
    return tuple(next(large) if size != 1 else next(small, None) for size in after)


@dataclasses.dataclass(frozen=True)
class Use:
    """How a convolution or matrix product uses a kernel.

    Attributes:
      layer: what is known of the layer without its place in the tree; `axes` are those of the
        operand. A product may have several axes for `I`, and several for `O`.
      reads: the axes of the activation that hold its channels.
      writes: the axes of the result that hold its channels.
      stays: as in `LayerLabels`.
    """

    layer: Layer
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    stays: bool = True


def use_of(equation: Any, side: int) -> Use | None:
    """The use of the kernel on one side of an operation; None if it has no layer's form."""
    sizes = equation.invars[side].aval.shape
    result = equation.outvars[0].aval.shape
    if equation.primitive.name == "dot_general":
        return _use_in_product(equation.params["dimension_numbers"], side, sizes, result)
    # Gradients convolve too: with an activation as the kernel, or with groups of the batch.
    if side == 0 or equation.params["batch_group_count"] != 1:
        return None
    return _use_in_conv(equation.params, sizes, result)


def _use_in_product(
    dimensions: Any, side: int, sizes: tuple[int, ...], result: tuple[int, ...]
) -> Use | None:
    contracted, batched = dimensions
    if batched[side]:  # a kernel for each example
        return None
    inputs = contracted[side]
    outputs = tuple(axis for axis in range(len(sizes)) if axis not in inputs)
    shape = tuple(math.prod(sizes[axis] for axis in axes) for axes in (inputs, outputs))
    layer = Layer("", "dense", "", shape, (*inputs, *outputs), size=result[1:-1])
    # The result has the remaining axes of the left operand, then those of the right one.
    first = 0 if side == 0 else len(result) - len(outputs)
    return Use(layer, contracted[1 - side], tuple(range(first, first + len(outputs))))


def _use_in_conv(params: Any, sizes: tuple[int, ...], result: tuple[int, ...]) -> Use:
    numbers, strides = params["dimension_numbers"], tuple(params["window_strides"])
    output, inputs, *spatial = numbers.rhs_spec
    window = [sizes[axis] for axis in spatial]
    layer = Layer(
        path="",
        kind="conv",
        weight="",
        shape=(*window, sizes[inputs], sizes[output]),
        axes=(*spatial, inputs, output),
        groups=params["feature_group_count"],
        strides=strides,
        size=tuple(result[axis] for axis in numbers.out_spec[2:]),
    )
    dilated = zip(window, params["rhs_dilation"], strict=True)
    # The padding that puts the middle of a window on the first element.
    centred = [(dilation * (size // 2),) * 2 for size, dilation in dilated]
    stays = (
        all(size % 2 for size in window)
        and {*strides, *params["lhs_dilation"]} <= {1}
        and [tuple(pair) for pair in params["padding"]] == centred
    )
    return Use(layer, (numbers.lhs_spec[1],), (numbers.out_spec[1],), stays)
