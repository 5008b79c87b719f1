"""Convolutions of all channels with all, or of groups of channels."""

import itertools
import math

import jax.numpy as jnp
from jax import Array, lax

from tlv_jax.convolutions.window import Shape, Window

MAX_PLACES = 64  # of a kernel; each is compiled by itself
BLOCK = 128  # channels of a convolution that stands for several groups


def is_matrix_product(inputs: Shape, kernel: Shape, window: Window) -> bool:
    """Whether a matrix product is faster than XLA's convolution.

    It is for a pointwise kernel, and for one that is larger than what it reads or writes: the
    input's gradient is a convolution of the result's.
    """
    sizes, outputs = kernel[:-2], window.outputs(inputs, kernel)
    if math.prod(sizes) == 1:
        return True
    larger = any(k > min(n, m) for k, n, m in zip(sizes, inputs[1:-1], outputs, strict=True))
    return larger and math.prod(map(len, window.visible(inputs, kernel))) <= MAX_PLACES


def matrix_product(inputs: Array, kernel: Array, window: Window) -> Array:
    """What each output reads, side by side, times the kernel as a matrix.

    Args:
      inputs: `[N, *spatial, C]`.
      kernel: `[*spatial, C, O]`.
      window: how the kernel moves.

    Returns:
      `[N, *spatial, O]`.
    """
    outputs = window.outputs(inputs.shape, kernel.shape)
    seen = window.visible(inputs.shape, kernel.shape)
    padded = window.pad(inputs)
    read = [window.read(padded, place, outputs) for place in itertools.product(*seen)]
    columns = read[0] if len(read) == 1 else jnp.concatenate(read, axis=-1)
    weights = kernel[tuple(slice(each.start, each.stop) for each in seen)]
    # Of arrays with more axes XLA stores a transposed copy first.
    product = columns.reshape(-1, columns.shape[-1]) @ weights.reshape(-1, kernel.shape[-1])
    return product.reshape(len(inputs), *outputs, kernel.shape[-1])


def is_wrong_in_xla(kernel: Shape, window: Window) -> bool:
    """Whether XLA may compute the convolution or its gradients wrongly.

    It is at times wrong for a negative padding. The input's gradient has one where a padding
    exceeds the kernel.
    """
    sizes = zip(kernel[:-2], window.rhs_dilation, window.padding, strict=True)
    return any(not 0 <= p <= (k - 1) * spread for k, spread, pair in sizes for p in pair)


def grouped(inputs: Array, kernel: Array, window: Window) -> Array:
    """Blocks of groups, each as one convolution whose kernel is zero between its groups.

    Args:
      inputs: `[N, *spatial, C]`.
      kernel: `[*spatial, C / groups, O]`.
      window: how the kernel moves.

    Returns:
      `[N, *spatial, O]`.
    """
    channels = inputs.shape[-1]
    *sizes, reads, writes = kernel.shape
    groups = channels // reads
    # As few channels as XLA is fast at, since each block multiplies with zeros too.
    enough = [n for n in range(1, groups + 1) if groups % n == 0 and channels >= n * BLOCK]
    blocks = max(enough, default=1)
    together = groups // blocks
    own = jnp.eye(together, dtype=bool).reshape(*(1 for _ in sizes), together, 1, together, 1)
    results = []
    for part, weights in zip(
        jnp.split(inputs, blocks, axis=-1), jnp.split(kernel, blocks, axis=-1), strict=True
    ):
        weights = weights.reshape(*sizes, 1, reads, together, writes // groups)
        own_weights = jnp.where(own, weights, 0) if together > 1 else weights
        dense = own_weights.reshape(*sizes, together * reads, writes // blocks)
        faster = is_matrix_product(part.shape, dense.shape, window)
        results.append((matrix_product if faster else convolution)(part, dense, window))
    return jnp.concatenate(results, axis=-1)


def convolution(inputs: Array, kernel: Array, window: Window) -> Array:
    """XLA's own, of the padded input where it may be wrong otherwise.

    Args:
      inputs: `[N, *spatial, C]`.
      kernel: `[*spatial, C, O]`.
      window: how the kernel moves.

    Returns:
      `[N, *spatial, O]`.
    """
    if is_wrong_in_xla(kernel.shape, window):
        inputs, none = window.pad(inputs), tuple((0, 0) for _ in window.padding)
        window = window._replace(padding=none, lhs_dilation=tuple(1 for _ in none))
    channels, spatial = inputs.ndim - 1, range(1, inputs.ndim - 1)
    activation = (0, channels, *spatial)
    weights = (channels, channels - 1, *(axis - 1 for axis in spatial))
    numbers = lax.ConvDimensionNumbers(activation, weights, activation)
    return lax.conv_general_dilated(inputs, kernel, *window, dimension_numbers=numbers)
