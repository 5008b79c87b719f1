"""MobileNetV2, as torchvision builds it.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381).

Shapes: images `[B, H, W, C]`; `D` is 1280; `N` is `num_classes`.
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
from tlv_jax.models.layers import conv

__all__ = ["VARIANTS", "MobileNetV2", "MobileNetV2Config"]


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Blocks of one width: expansion of the inputs, outputs, repeats, stride of the first."""

    expansion: int
    width: int
    repeats: int
    stride: int


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """The stages (table 2 of the paper), and the rate of the dropout before the last layer."""

    stages: tuple[StageConfig, ...]
    dropout: float = 0.2


VARIANTS: Mapping[str, MobileNetV2Config] = MappingProxyType(
    {
        "mobilenet_v2": MobileNetV2Config(
            (
                StageConfig(expansion=1, width=16, repeats=1, stride=1),
                StageConfig(expansion=6, width=24, repeats=2, stride=2),
                StageConfig(expansion=6, width=32, repeats=3, stride=2),
                StageConfig(expansion=6, width=64, repeats=4, stride=2),
                StageConfig(expansion=6, width=96, repeats=3, stride=1),
                StageConfig(expansion=6, width=160, repeats=3, stride=2),
                StageConfig(expansion=6, width=320, repeats=1, stride=1),
            )
        )
    }
)
_STEM_WIDTH, _HEAD_WIDTH = 32, 1280


class MobileNetV2(nn.Module):
    """A MobileNetV2 whose parameters carry torchvision's names (`features.1/conv.0.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: MobileNetV2Config
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.drop = nn.Dropout(self.config.dropout)
        self.logits = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier.1",
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
        outputs = conv(_STEM_WIDTH, 3, stride=2, name="features.0.0", **types)(images)
        outputs = nn.relu6(BatchNorm(name="features.0.1", **types)(outputs, train=train))
        number = 1
        for stage in self.config.stages:
            for repeat in range(stage.repeats):
                block = InvertedResidual(
                    expansion=stage.expansion,
                    width=stage.width,
                    stride=stage.stride if repeat == 0 else 1,
                    name=f"features.{number}",
                    **types,
                )
                outputs = block(outputs, train=train)
                number += 1
        outputs = conv(_HEAD_WIDTH, 1, name=f"features.{number}.0", **types)(outputs)
        outputs = nn.relu6(BatchNorm(name=f"features.{number}.1", **types)(outputs, train=train))
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Dropout and the last layer. `[B, D] -> [B, N]`."""
        return self.logits(self.drop(features, deterministic=not train))


class InvertedResidual(nn.Module):
    """Expands, filters each channel, projects; adds the inputs where shapes allow.

    Attributes:
      expansion: channels between over channels of the inputs; at 1 nothing is expanded.
      width: output channels.
      stride: of the depthwise convolution.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    expansion: int
    width: int
    stride: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs, number, width = inputs, 0, inputs.shape[-1] * self.expansion
        if self.expansion != 1:
            outputs = conv(width, 1, name="conv.0.0", **types)(outputs)
            outputs = nn.relu6(BatchNorm(name="conv.0.1", **types)(outputs, train=train))
            number = 1
        depthwise = conv(
            width, 3, stride=self.stride, groups=width, name=f"conv.{number}.0", **types
        )
        norm = BatchNorm(name=f"conv.{number}.1", **types)
        outputs = nn.relu6(norm(depthwise(outputs), train=train))
        outputs = conv(self.width, 1, name=f"conv.{number + 1}", **types)(outputs)
        outputs = BatchNorm(name=f"conv.{number + 2}", **types)(outputs, train=train)
        return outputs + inputs if outputs.shape == inputs.shape else outputs
