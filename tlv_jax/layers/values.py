"""What the walk through a program knows about each value, and how operations change it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

# These may change the elements of a parameter, but not their places.
ELEMENTWISE = frozenset(
    {"abs", "add", "convert_element_type", "copy", "div", "exp", "max", "min", "mul", "neg"}
    | {"optimization_barrier", "reduce_precision", "sharding_constraint", "sqrt", "sub", "tanh"}
)


@dataclasses.dataclass(frozen=True)
class View:
    """A value of the program that holds the elements of a parameter.

    Attributes:
      leaf: the parameter's path.
      axes: for each axis of the value the axis of the unstacked leaf; None for one of size 1 that
        the leaf does not have.
      index: position along the leading axes that `scan` loops over.
    """

    leaf: str
    axes: tuple[int | None, ...]
    index: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value in the program.

    Attributes:
      active: whether it depends on the function's inputs.
      leaves: paths of the parameters that it depends on, if it is not active. One that `scan` loops
        over has its step behind it: `blocks/scale[0]`.
      view: the parameter whose elements it holds, where known.
      feeds: paths of the layers whose outputs reach it with no other layer between.
      labels: the channel of each element, see `tlv_jax.layers.channels`.
      statistics: what it was centred and then divided with, as `(name, leaf path)`. They belong to
        a norm if its scale follows.
    """

    active: bool = False
    leaves: tuple[str, ...] = ()
    view: View | None = None
    feeds: tuple[str, ...] = ()
    labels: Any = None
    statistics: tuple[tuple[str, str], ...] = ()


def feeds_of(values: Iterable[Value]) -> tuple[str, ...]:
    """The layers whose outputs reach any of several values."""
    return tuple(dict.fromkeys(path for value in values for path in value.feeds))


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as an operation uses it; `axes` orders its axes as `[*spatial, I, O]`."""

    kind: Any
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()


def conv_kernel(params: Mapping[str, Any], shape: tuple[int, ...]) -> Kernel | None:
    """The kernel of a `conv_general_dilated` with these parameters; None inside a gradient."""
    if params["batch_group_count"] != 1:
        return None
    output, inputs, *spatial = params["dimension_numbers"].rhs_spec
    axes = (*spatial, inputs, output)
    return Kernel(
        "conv",
        axes,
        tuple(shape[axis] for axis in axes),
        groups=params["feature_group_count"],
        strides=tuple(params["window_strides"]),
    )


def dot_kernel(dimensions: Any, side: int, shape: tuple[int, ...]) -> Kernel | None:
    """The kernel on one side of a `dot_general`; None if it has a batch axis."""
    contracted, batched = (pair[side] for pair in dimensions)
    if batched:
        return None
    free = tuple(axis for axis in range(len(shape)) if axis not in contracted)
    sizes = (
        math.prod(shape[axis] for axis in contracted),
        math.prod(shape[axis] for axis in free),
    )
    return Kernel("dense", (*contracted, *free), sizes)


def axes_after(
    equation: Any, axes: tuple[int | None, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[int | None, ...] | None:
    """The leaf axes of a view after one more operation; None if they are lost."""
    name = equation.primitive.name
    if name == "transpose":
        return tuple(axes[axis] for axis in equation.params["permutation"])
    if name in ELEMENTWISE or name == "rev":
        return axes if before == after else None
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        kept = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
        if [size for size in before if size != 1] != [size for size in after if size != 1]:
            return None
        ones = [axis for axis, size in zip(axes, before, strict=True) if size == 1]
        large, small = iter(kept), iter(ones)
        return tuple(next(large) if size != 1 else next(small, None) for size in after)
    return None
