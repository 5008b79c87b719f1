"""What GoogLeNet and InceptionV3 share."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import TypedModule
from tlv_jax.models.layers import conv

__all__ = ["ConvNorm", "from_imagenet_statistics"]


class ConvNorm(TypedModule):
    """A convolution without bias, a batch norm and a ReLU: torchvision's `BasicConv2d`.

    Attributes:
      width: output channels.
      size: of the kernel, for both sides or for each.
      kernel_init: of the kernel.
      stride: for both sides.
      padding: pixels on every side; by default half the kernel.
    """

    width: int
    size: int | tuple[int, int]
    kernel_init: Callable[..., jax.Array]
    stride: int = 1
    padding: int | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H', W', width]`."""
        layer = conv(
            self.width,
            self.size,
            stride=self.stride,
            padding=self.padding,
            kernel_init=self.kernel_init,
            name="conv",
            **self.types,
        )
        norm = BatchNorm(epsilon=1e-3, name="bn", **self.types)
        return nn.relu(norm(layer(inputs), train=train))


def from_imagenet_statistics(images: jax.Array) -> jax.Array:
    """Images that were normalized by ImageNet's statistics, as if by 0.5 and 0.5.

    So were those that the published weights, which come from TensorFlow, were trained on.
    `[B, H, W, 3] -> [B, H, W, 3]`.
    """
    scale = np.array((0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5), images.dtype)
    shift = np.array([(mean - 0.5) / 0.5 for mean in (0.485, 0.456, 0.406)], images.dtype)
    return images * scale.reshape(1, 1, 1, 3) + shift.reshape(1, 1, 1, 3)
