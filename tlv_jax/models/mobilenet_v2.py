"""MobileNetV2, as torchvision builds it.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381).

Shapes: images `[B, H, W, C]`; `D` is 1280; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
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


class MobileNetV2(Classifier):
    """A MobileNetV2 whose parameters carry torchvision's names (`features.1/conv.0.0`)."""

    config: MobileNetV2Config

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer(
            "classifier.1",
            kernel_init=nn.initializers.normal(0.01),
            dropout=self.config.dropout,
        )

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        outputs = self.conv_norm(images, _STEM_WIDTH, 3, "features.0", train=train, stride=2)
        outputs, number = nn.relu6(outputs), 1
        for stage in self.config.stages:
            for repeat in range(stage.repeats):
                block = InvertedResidual(
                    expansion=stage.expansion,
                    width=stage.width,
                    stride=stage.stride if repeat == 0 else 1,
                    name=f"features.{number}",
                    **self.types,
                )
                outputs = block(outputs, train=train)
                number += 1
        return nn.relu6(self.conv_norm(outputs, _HEAD_WIDTH, 1, f"features.{number}", train=train))


class InvertedResidual(TypedModule):
    """Expands, filters each channel, projects; adds the inputs where shapes allow.

    Attributes:
      expansion: channels between over channels of the inputs; at 1 nothing is expanded.
      width: output channels.
      stride: of the depthwise convolution.
    """

    expansion: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        outputs, number, between = inputs, 0, inputs.shape[-1] * self.expansion
        if self.expansion != 1:
            outputs = nn.relu6(self.conv_norm(inputs, between, 1, "conv.0", train=train))
            number = 1
        outputs = self.conv_norm(
            outputs, between, 3, f"conv.{number}", train=train, stride=self.stride, groups=between
        )
        # The last convolution stands bare in torch's Sequential, not in one with its norm.
        project = conv(self.width, 1, name=f"conv.{number + 1}", **self.types)
        norm = BatchNorm(name=f"conv.{number + 2}", **self.types)
        outputs = norm(project(nn.relu6(outputs)), train=train)
        return outputs + inputs if outputs.shape == inputs.shape else outputs
