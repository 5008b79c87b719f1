"""What the families share: initializers of torch's and pooling with torch's windows."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = [
    "adaptive_average_pool",
    "conv",
    "he_normal_fan_out",
    "round_width",
    "stochastic_depth",
    "uniform_fan",
    "uniform_within",
]

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""`kaiming_normal_(mode="fan_out", nonlinearity="relu")`, with which torchvision starts convs."""

uniform_fan = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""`torch.nn.Linear`'s default: uniform within `1 / sqrt(fan_in)`."""


def uniform_within(bound: float) -> Callable[..., jax.Array]:
    """An initializer uniform in `[-bound, bound)`."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialize


def conv(
    width: int,
    size: int | tuple[int, int],
    *,
    name: str,
    dtype: Any,
    param_dtype: Any,
    stride: int = 1,
    groups: int = 1,
    padding: int | str | tuple[int, int] | None = None,
    use_bias: bool = False,
    kernel_init: Callable[..., jax.Array] = he_normal_fan_out,
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros,
) -> nn.Conv:
    """A two-dimensional convolution with torch's padding.

    Args:
      width: output channels.
      size: of the kernel, for both sides or for each.
      name: of the submodule, as in torch's state dict.
      dtype: of the computation.
      param_dtype: of the parameters.
      stride: for both sides.
      groups: as `feature_group_count`; the number of channels for a depthwise convolution.
      padding: pixels on every side, or above and below and at the sides, or a name that
        `flax.linen.Conv` knows. By default half the kernel, which keeps the size at stride 1.
      use_bias: whether a bias is added.
      kernel_init: of the kernel.
      bias_init: of the bias.
    """
    sizes = (size, size) if isinstance(size, int) else size
    if padding is None:
        # Evenly on both sides, where "SAME" would shift a strided window by one.
        padding = (sizes[0] // 2, sizes[1] // 2)
    return nn.Conv(
        width,
        sizes,
        strides=stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )


def round_width(width: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of `width`.

    How the mobile networks scale their channels.
    """
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def stochastic_depth(rate: float) -> nn.Dropout:
    """Drops the whole branch of an image, as `torchvision.ops.StochasticDepth(mode="row")`.

    "Deep Networks with Stochastic Depth" (arXiv 1603.09382). The branches that stay are divided by
    `1 - rate`. For activations `[B, H, W, C]`.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3))


def adaptive_average_pool(images: jax.Array, size: int) -> jax.Array:
    """Averages any spatial size down (or up) to `size`. `[B, H, W, C] -> [B, size, size, C]`.

    The windows are those of `torch.nn.AdaptiveAvgPool2d`: the i-th spans
    `floor(i * H / size) .. ceil((i + 1) * H / size)`, so that they overlap where `size` does not
    divide `H`, and repeat where `H` is smaller.
    """
    for axis in (1, 2):
        images = _pool_axis(images, axis, size)
    return images


def _pool_axis(images: jax.Array, axis: int, size: int) -> jax.Array:
    length = images.shape[axis]
    if length % size == 0:
        shape = (*images.shape[:axis], size, length // size, *images.shape[axis + 1 :])
        return images.reshape(shape).mean(axis + 1)
    windows = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    means = [jax.lax.slice_in_dim(images, *window, axis=axis).mean(axis) for window in windows]
    return jnp.stack(means, axis)
