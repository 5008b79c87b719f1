"""Pooling with torch's windows."""

import flax.linen as nn
import jax

__all__ = ["avg_pool", "max_pool"]


def max_pool(
    images: jax.Array, size: int, *, stride: int, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """`torch.nn.MaxPool2d`. `[B, H, W, C] -> [B, H', W', C]`.

    Args:
      images: activations.
      size: of the window, both sides.
      stride: for both sides.
      padding: pixels of minus infinity on every side.
      ceil_mode: whether a last window may hang over the right and lower edge. As in torch it must
        begin inside the image or its left padding.
    """
    pads = []
    for length in images.shape[1:3]:
        overhang = padding
        if ceil_mode:
            windows = -(-(length + 2 * padding - size) // stride) + 1
            windows -= (windows - 1) * stride >= length + padding
            overhang = max((windows - 1) * stride + size - length - padding, 0)
        pads.append((padding, overhang))
    return nn.max_pool(images, (size, size), strides=(stride, stride), padding=pads)  # type: ignore[arg-type]


def avg_pool(images: jax.Array, size: int, *, stride: int, padding: int = 0) -> jax.Array:
    """`torch.nn.AvgPool2d`, whose means count the padding. `[B, H, W, C] -> [B, H', W', C]`.

    Args:
      images: activations.
      size: of the window, both sides.
      stride: for both sides.
      padding: zeros on every side.
    """
    pads = ((padding, padding), (padding, padding))
    return nn.avg_pool(images, (size, size), strides=(stride, stride), padding=pads)  # type: ignore[arg-type]
