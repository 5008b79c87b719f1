"""ShuffleNetV2 at four widths, as torchvision builds it.

"ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (arXiv 1807.11164).

Shapes: images `[B, H, W, C]`; `D` is 1024, or 2048 at twice the width; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import conv, uniform_fan, uniform_within
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "ShuffleNetV2", "ShuffleNetV2Config"]


@dataclasses.dataclass(frozen=True)
class ShuffleNetV2Config:
    """Output channels of the three stages, and of the last convolution."""

    widths: tuple[int, int, int]
    head_width: int = 1024


VARIANTS: Mapping[str, ShuffleNetV2Config] = MappingProxyType(
    {
        "shufflenet_v2_x0_5": ShuffleNetV2Config((48, 96, 192)),
        "shufflenet_v2_x1_0": ShuffleNetV2Config((116, 232, 464)),
        "shufflenet_v2_x1_5": ShuffleNetV2Config((176, 352, 704)),
        "shufflenet_v2_x2_0": ShuffleNetV2Config((244, 488, 976), head_width=2048),
    }
)
_STEM_WIDTH = 24
_REPEATS = (4, 8, 4)


class ShuffleNetV2(nn.Module):
    """A ShuffleNetV2 whose parameters carry torchvision's names (`stage2.0/branch1.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: ShuffleNetV2Config
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.fc = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=uniform_fan,
            bias_init=uniform_within(self.config.head_width**-0.5),
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images. `[B, H, W, C] -> [B, N]`."""
        return self.head(self.features(images, train=train), train=train)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Globally pooled features. `[B, H, W, C] -> [B, D]`.

        Raises:
          ImageError: for images of another channel count.
        """
        check_images(images, channels=self.in_channels)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs = _conv(_STEM_WIDTH, 3, "conv1.0", types, stride=2)(images)
        outputs = nn.relu(BatchNorm(name="conv1.1", **types)(outputs, train=train))
        outputs = max_pool(outputs, 3, stride=2, padding=1)
        for stage, (repeats, width) in enumerate(
            zip(_REPEATS, self.config.widths, strict=True), start=2
        ):
            for number in range(repeats):
                stride = 2 if number == 0 else 1
                unit = Unit(width, stride, name=f"stage{stage}.{number}", **types)
                outputs = unit(outputs, train=train)
        outputs = _conv(self.config.head_width, 1, "conv5.0", types)(outputs)
        outputs = nn.relu(BatchNorm(name="conv5.1", **types)(outputs, train=train))
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The last layer. `[B, D] -> [B, N]`."""
        del train  # the layer behaves the same either way
        return self.fc(features)


class Unit(nn.Module):
    """Works on one half of the channels, or with stride 2 on all in two branches, then shuffles.

    Attributes:
      width: output channels.
      stride: of the block.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    width: int
    stride: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        if self.stride == 1:
            passed, worked = jnp.split(inputs, 2, axis=-1)
        else:
            passed, worked = self._downsampled(inputs, train), inputs
        return _shuffled(jnp.concatenate((passed, self._branch(worked, train)), axis=-1))

    def _downsampled(self, inputs: jax.Array, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = inputs.shape[-1]
        outputs = _conv(channels, 3, "branch1.0", types, stride=2, groups=channels)(inputs)
        outputs = BatchNorm(name="branch1.1", **types)(outputs, train=train)
        outputs = _conv(self.width // 2, 1, "branch1.2", types)(outputs)
        return nn.relu(BatchNorm(name="branch1.3", **types)(outputs, train=train))

    def _branch(self, inputs: jax.Array, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        half = self.width // 2
        outputs = _conv(half, 1, "branch2.0", types)(inputs)
        outputs = nn.relu(BatchNorm(name="branch2.1", **types)(outputs, train=train))
        outputs = _conv(half, 3, "branch2.3", types, stride=self.stride, groups=half)(outputs)
        outputs = BatchNorm(name="branch2.4", **types)(outputs, train=train)
        outputs = _conv(half, 1, "branch2.5", types)(outputs)
        return nn.relu(BatchNorm(name="branch2.6", **types)(outputs, train=train))


def _shuffled(images: jax.Array) -> jax.Array:
    """Interleaves the two halves of the channels. `[B, H, W, C] -> [B, H, W, C]`."""
    *outer, channels = images.shape
    halves = images.reshape(*outer, 2, channels // 2)
    return halves.swapaxes(-1, -2).reshape(*outer, channels)


def _conv(
    width: int, size: int, name: str, types: dict[str, Any], *, stride: int = 1, groups: int = 1
) -> nn.Conv:
    return conv(
        width, size, stride=stride, groups=groups, kernel_init=uniform_fan, name=name, **types
    )
