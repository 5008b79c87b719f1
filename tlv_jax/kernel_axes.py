"""What the axes of a kernel mean, told from the operation that consumes it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["Kernel", "conv_kernel", "dot_kernel"]


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
