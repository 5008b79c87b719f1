"""What becomes of a parameter's axes, and what those of a kernel mean where it is consumed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["Kernel", "axes_after", "conv_kernel", "dot_kernel"]

# The value of a parameter's elements may change in these, their places do not.
ELEMENTWISE = frozenset(
    {"abs", "add", "convert_element_type", "copy", "div", "exp", "max", "min", "mul", "neg"}
    | {"optimization_barrier", "reduce_precision", "sharding_constraint", "sqrt", "sub", "tanh"}
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as an operation uses it; `axes` orders its axes as `[*spatial, I, O]`."""

    kind: Any
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()


def conv_kernel(params: Mapping[str, Any], shape: tuple[int, ...]) -> Kernel | None:
    """The kernel of a `conv_general_dilated` of these parameters; None within a gradient."""
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
    """The kernel on one side of a `dot_general`; None if it is one of a batch."""
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
    """The leaf axes behind a view after one more operation, None where they are lost."""
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
