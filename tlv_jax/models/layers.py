"""What the families share: initializers of torch's and pooling with torch's windows."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["adaptive_average_pool", "he_normal_fan_out", "uniform_fan", "uniform_within"]

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""`kaiming_normal_(mode="fan_out", nonlinearity="relu")`, with which torchvision starts convs."""

uniform_fan = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""`torch.nn.Linear`'s default: uniform within `1 / sqrt(fan_in)`."""


def uniform_within(bound: float) -> Callable[..., jax.Array]:
    """An initializer uniform in `[-bound, bound)`."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialize


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
