"""What the walk through a program knows about each value, and how operations change it."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tlv_jax.types import Kind

# These may change the elements of a parameter, but not their places.
ELEMENTWISE = frozenset(
    {"abs", "add", "convert_element_type", "copy", "div", "exp", "max", "min", "mul", "neg", "rev"}
    | {"optimization_barrier", "reduce_precision", "sharding_constraint", "sqrt", "sub", "tanh"}
)

Leaf = tuple[str, tuple[int, ...]]
"""A parameter's path, and the steps along its leading axes that `scan` has taken."""


@dataclasses.dataclass(frozen=True)
class View:
    """A value of the program that holds the elements of a parameter.

    Attributes:
      leaf: the parameter.
      axes: for each axis of the value the axis of the unstacked leaf; None for one of size 1 that
        the leaf does not have.
    """

    leaf: Leaf
    axes: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value in the program.

    Attributes:
      active: whether it depends on the function's inputs.
      leaves: the parameters that it depends on, if it is not active.
      view: the parameter whose elements it holds, where known.
      feeds: paths of the layers whose outputs reach it with no other layer between.
      labels: the channel of each element, see `tlv_jax.layers.channels`.
      statistics: what it was centred and then divided with, as `(name, leaf path)`. They belong to
        a norm if its scale follows.
    """

    active: bool = False
    leaves: tuple[Leaf, ...] = ()
    view: View | None = None
    feeds: tuple[str, ...] = ()
    labels: Any = None
    statistics: tuple[tuple[str, str], ...] = ()


def merge(values: Sequence[Value]) -> Value:
    """One value for several operands, branches or steps."""
    return Value(
        active=any(value.active for value in values),
        leaves=_unique(leaf for value in values for leaf in value.leaves),
        feeds=_unique(path for value in values for path in value.feeds),
    )


def _unique(items: Iterable[Any]) -> tuple[Any, ...]:
    # A dict, unlike a set, keeps the order.
    return tuple(dict.fromkeys(items))


def view_after(equation: Any, operands: Sequence[Value]) -> View | None:
    """The view that an operation on parameters gives; None if it moves their elements."""
    after = equation.outvars[0].aval.shape
    for variable, value in zip(equation.invars, operands, strict=True):
        if value.view is not None:
            axes = _axes_after(equation, value.view.axes, variable.aval.shape, after)
            if axes is not None:
                return dataclasses.replace(value.view, axes=axes)
    return None


def _axes_after(
    equation: Any, axes: tuple[int | None, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[int | None, ...] | None:
    name = equation.primitive.name
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
class Kernel:
    """How a convolution or matrix product uses a kernel.

    Attributes:
      kind: `conv` or `dense`.
      axes: of the kernel, ordered as `[*spatial, I, O]`; a product may have several `I` and `O`.
      shape: `[*spatial, I, O]`.
      reads: the axes of the activation that hold its channels.
      writes: the axes of the result that hold its channels.
      size: the spatial size of the result.
      groups: the number of feature groups.
      strides: of the window.
      stays: as in `LayerLabels`.
    """

    kind: Kind
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    size: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()
    stays: bool = True


def kernel_of(equation: Any, side: int) -> Kernel | None:
    """The kernel on one side of a convolution or matrix product; None if it has no layer's form."""
    sizes = equation.invars[side].aval.shape
    result = equation.outvars[0].aval.shape
    if equation.primitive.name == "dot_general":
        return _dense_kernel(equation.params["dimension_numbers"], side, sizes, result)
    # Gradients convolve too: with the activations as kernel, or with groups of the batch.
    if side == 0 or equation.params["batch_group_count"] != 1:
        return None
    return _conv_kernel(equation.params, sizes, result)


def _dense_kernel(
    dimensions: Any, side: int, sizes: tuple[int, ...], result: tuple[int, ...]
) -> Kernel | None:
    contracted, batched = dimensions
    if batched[side]:  # a kernel for each example
        return None
    free = tuple(axis for axis in range(len(sizes)) if axis not in contracted[side])
    # The result has the free axes of the left operand, then those of the right one.
    first = 0 if side == 0 else len(result) - len(free)
    return Kernel(
        "dense",
        axes=(*contracted[side], *free),
        shape=tuple(math.prod(sizes[axis] for axis in axes) for axes in (contracted[side], free)),
        reads=contracted[1 - side],
        writes=tuple(range(first, first + len(free))),
        size=result[1:-1],
    )


def _conv_kernel(params: Any, sizes: tuple[int, ...], result: tuple[int, ...]) -> Kernel:
    numbers, strides = params["dimension_numbers"], tuple(params["window_strides"])
    output, inputs, *spatial = numbers.rhs_spec
    window = [sizes[axis] for axis in spatial]
    dilated = zip(window, params["rhs_dilation"], strict=True)
    centred = [(dilation * (size // 2),) * 2 for size, dilation in dilated]
    return Kernel(
        "conv",
        axes=(*spatial, inputs, output),
        shape=(*window, sizes[inputs], sizes[output]),
        reads=(numbers.lhs_spec[1],),
        writes=(numbers.out_spec[1],),
        size=tuple(result[axis] for axis in numbers.out_spec[2:]),
        groups=params["feature_group_count"],
        strides=strides,
        stays=all(size % 2 for size in window)
        and {*strides, *params["lhs_dilation"]} <= {1}
        and [tuple(pair) for pair in params["padding"]] == centred,
    )
