"""Choose the form of a convolution by its shapes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from tlv_jax.convolutions.dense import (
    MAX_PLACES,
    convolution,
    grouped,
    is_matrix_product,
    is_wrong_in_xla,
    matrix_product,
)
from tlv_jax.convolutions.depthwise import depthwise
from tlv_jax.convolutions.window import Shape, Window


def faster_convolution(
    params: Mapping[str, Any], lhs: Any, rhs: Any, result: Any
) -> Callable[[Array, Array], Array] | None:
    """A faster way to compute a `conv_general_dilated` on a CPU.

    Args:
      params: of the primitive.
      lhs: the activation, as shape and dtype.
      rhs: the kernel, likewise.
      result: what the primitive returns, likewise.

    Returns:
      A function of activation and kernel; None where XLA's own way is kept. It computes in float32
      at least.
    """
    floats = all(jnp.issubdtype(each.dtype, jnp.floating) for each in (lhs, rhs, result))
    sizes = (*lhs.shape, *rhs.shape, *result.shape)
    if not floats or 0 in sizes or len(lhs.shape) < 3 or params["batch_group_count"] != 1:
        return None
    # Specs name batch (or outputs), channels, and the spatial axes.
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    to_inputs = (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    to_kernel = (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    layout = (out_spec[0], *out_spec[2:], out_spec[1])
    to_result = tuple(layout.index(axis) for axis in range(len(layout)))
    window = Window(
        strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
    )
    inputs = tuple(lhs.shape[axis] for axis in to_inputs)
    kernel = tuple(rhs.shape[axis] for axis in to_kernel)
    form = _form(inputs, kernel, params["feature_group_count"], window)
    if form is None:
        return None

    def cpu_convolution(lhs: Array, rhs: Array) -> Array:
        dtype = jnp.promote_types(lhs.dtype, jnp.float32)
        operands = lhs.astype(dtype).transpose(to_inputs), rhs.astype(dtype).transpose(to_kernel)
        return form(*operands, window).transpose(to_result).astype(result.dtype)

    return cpu_convolution


def _form(
    inputs: Shape, kernel: Shape, groups: int, window: Window
) -> Callable[[Array, Array, Window], Array] | None:
    if groups == 1:
        if is_matrix_product(inputs, kernel, window):
            return matrix_product
        return convolution if is_wrong_in_xla(kernel, window) else None
    if kernel[-2] > 1:
        return grouped
    columns = window.visible(inputs, kernel)[1:]
    return depthwise if math.prod(map(len, columns)) <= MAX_PLACES else None
