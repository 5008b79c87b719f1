"""ResNet 18 to 152, ResNeXt and Wide ResNet, as torchvision builds them.

"Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with the stride in the 3x3
convolution of a bottleneck ("v1.5"); "Aggregated Residual Transformations" (arXiv 1611.05431);
"Wide Residual Networks" (arXiv 1605.07146).

Shapes: images `[B, H, W, C]`; `D` is 512, or 2048 with bottlenecks; `N` is `num_classes`.
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

__all__ = ["VARIANTS", "ResNet", "ResNetConfig"]


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What tells one ResNet from another.

    Attributes:
      depths: number of blocks in each of the four stages.
      bottleneck: 1x1, 3x3, 1x1 convolutions in a block instead of two 3x3.
      groups: of the bottleneck's 3x3 convolution.
      group_width: channels of one group in the first stage.
    """

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    @property
    def expansion(self) -> int:
        """Output channels of a block over the width of its stage."""
        return 4 if self.bottleneck else 1


VARIANTS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
        "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
        "resnet50": ResNetConfig((3, 4, 6, 3)),
        "resnet101": ResNetConfig((3, 4, 23, 3)),
        "resnet152": ResNetConfig((3, 8, 36, 3)),
        "resnext50_32x4d": ResNetConfig((3, 4, 6, 3), groups=32, group_width=4),
        "resnext101_32x8d": ResNetConfig((3, 4, 23, 3), groups=32, group_width=8),
        "resnext101_64x4d": ResNetConfig((3, 4, 23, 3), groups=64, group_width=4),
        "wide_resnet50_2": ResNetConfig((3, 4, 6, 3), group_width=128),
        "wide_resnet101_2": ResNetConfig((3, 4, 23, 3), group_width=128),
    }
)


class ResNet(nn.Module):
    """A ResNet whose parameters carry torchvision's names (`layer1.0/conv1`, `fc`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: ResNetConfig
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
            bias_init=uniform_within((512 * self.config.expansion) ** -0.5),
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
        outputs = conv(64, 7, stride=2, name="conv1", **types)(images)
        outputs = nn.relu(BatchNorm(name="bn1", **types)(outputs, train=train))
        padding: Any = ((1, 1), (1, 1))  # taken, though Flax annotates a string
        outputs = nn.max_pool(outputs, (3, 3), strides=(2, 2), padding=padding)
        for stage, depth in enumerate(self.config.depths):
            for block in range(depth):
                outputs = Block(
                    self.config,
                    width=64 * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    name=f"layer{stage + 1}.{block}",
                    **types,
                )(outputs, train=train)
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The last layer. `[B, D] -> [B, N]`."""
        del train  # kept: every family's head is called the same way
        return self.fc(features)


class Block(nn.Module):
    """A residual block, basic or bottleneck.

    Attributes:
      config: of the network.
      width: channels of the stage, before expansion.
      stride: of the block, in its first 3x3 convolution and in its shortcut.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    config: ResNetConfig
    width: int
    stride: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width * expansion]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        out = self.width * self.config.expansion
        convs = self._convs(types)
        outputs = inputs
        for number, layer in enumerate(convs, start=1):
            outputs = BatchNorm(name=f"bn{number}", **types)(layer(outputs), train=train)
            if number < len(convs):
                outputs = nn.relu(outputs)
        if self.stride != 1 or inputs.shape[-1] != out:
            inputs = conv(out, 1, stride=self.stride, name="downsample.0", **types)(inputs)
            inputs = BatchNorm(name="downsample.1", **types)(inputs, train=train)
        return nn.relu(outputs + inputs)

    def _convs(self, types: dict[str, Any]) -> tuple[nn.Conv, ...]:
        width, stride = self.width, self.stride
        if not self.config.bottleneck:
            return (
                conv(width, 3, stride=stride, name="conv1", **types),
                conv(width, 3, name="conv2", **types),
            )
        inner = width * self.config.group_width // 64 * self.config.groups
        groups = self.config.groups
        return (
            conv(inner, 1, name="conv1", **types),
            conv(inner, 3, stride=stride, groups=groups, name="conv2", **types),
            conv(width * self.config.expansion, 1, name="conv3", **types),
        )
