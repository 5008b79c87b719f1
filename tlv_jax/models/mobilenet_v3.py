"""MobileNetV3, large and small, as torchvision builds them.

"Searching for MobileNetV3" (arXiv 1905.02244), tables 1 and 2.

Shapes: images `[B, H, W, C]`; `D` is six times the last block's width; `N` is `num_classes`.
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
from tlv_jax.models.layers import conv, round_width
from tlv_jax.models.squeeze_excitation import SqueezeExcitation

__all__ = ["VARIANTS", "MobileNetV3", "MobileNetV3Config"]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One block: kernel size, channels between, outputs, excitation, hard swish or ReLU, stride."""

    size: int
    expanded: int
    width: int
    excite: bool
    swish: bool
    stride: int


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """The blocks, the hidden width of the classifier, and the dropout before its last layer."""

    blocks: tuple[BlockConfig, ...]
    hidden: int
    dropout: float = 0.2


VARIANTS: Mapping[str, MobileNetV3Config] = MappingProxyType(
    {
        "mobilenet_v3_large": MobileNetV3Config(
            (
                BlockConfig(3, 16, 16, excite=False, swish=False, stride=1),
                BlockConfig(3, 64, 24, excite=False, swish=False, stride=2),
                BlockConfig(3, 72, 24, excite=False, swish=False, stride=1),
                BlockConfig(5, 72, 40, excite=True, swish=False, stride=2),
                BlockConfig(5, 120, 40, excite=True, swish=False, stride=1),
                BlockConfig(5, 120, 40, excite=True, swish=False, stride=1),
                BlockConfig(3, 240, 80, excite=False, swish=True, stride=2),
                BlockConfig(3, 200, 80, excite=False, swish=True, stride=1),
                BlockConfig(3, 184, 80, excite=False, swish=True, stride=1),
                BlockConfig(3, 184, 80, excite=False, swish=True, stride=1),
                BlockConfig(3, 480, 112, excite=True, swish=True, stride=1),
                BlockConfig(3, 672, 112, excite=True, swish=True, stride=1),
                BlockConfig(5, 672, 160, excite=True, swish=True, stride=2),
                BlockConfig(5, 960, 160, excite=True, swish=True, stride=1),
                BlockConfig(5, 960, 160, excite=True, swish=True, stride=1),
            ),
            hidden=1280,
        ),
        "mobilenet_v3_small": MobileNetV3Config(
            (
                BlockConfig(3, 16, 16, excite=True, swish=False, stride=2),
                BlockConfig(3, 72, 24, excite=False, swish=False, stride=2),
                BlockConfig(3, 88, 24, excite=False, swish=False, stride=1),
                BlockConfig(5, 96, 40, excite=True, swish=True, stride=2),
                BlockConfig(5, 240, 40, excite=True, swish=True, stride=1),
                BlockConfig(5, 240, 40, excite=True, swish=True, stride=1),
                BlockConfig(5, 120, 48, excite=True, swish=True, stride=1),
                BlockConfig(5, 144, 48, excite=True, swish=True, stride=1),
                BlockConfig(5, 288, 96, excite=True, swish=True, stride=2),
                BlockConfig(5, 576, 96, excite=True, swish=True, stride=1),
                BlockConfig(5, 576, 96, excite=True, swish=True, stride=1),
            ),
            hidden=1024,
        ),
    }
)
_STEM_WIDTH = 16


class MobileNetV3(nn.Module):
    """A MobileNetV3 whose parameters carry torchvision's names (`features.1/block.0.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: MobileNetV3Config
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.hidden = self._dense(self.config.hidden, 0)
        self.logits = self._dense(self.num_classes, 3)
        self.drop = nn.Dropout(self.config.dropout)

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
        outputs = nn.hard_swish(_norm("features.0.1", types)(outputs, train=train))
        for number, block in enumerate(self.config.blocks, start=1):
            outputs = Block(block, name=f"features.{number}", **types)(outputs, train=train)
        last = f"features.{len(self.config.blocks) + 1}"
        outputs = conv(6 * outputs.shape[-1], 1, name=f"{last}.0", **types)(outputs)
        outputs = nn.hard_swish(_norm(f"{last}.1", types)(outputs, train=train))
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The two dense layers. `[B, D] -> [B, N]`."""
        hidden = nn.hard_swish(self.hidden(features))
        return self.logits(self.drop(hidden, deterministic=not train))

    def _dense(self, width: int, number: int) -> nn.Dense:
        return nn.Dense(
            width,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(0.01),
            name=f"classifier.{number}",
        )


class Block(nn.Module):
    """Expands, filters each channel, excites, projects; adds the inputs where shapes allow.

    Attributes:
      config: its sizes.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    config: BlockConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        config, width = self.config, self.config.expanded
        activation = nn.hard_swish if config.swish else nn.relu
        outputs, number = inputs, 0
        if width != inputs.shape[-1]:
            outputs = conv(width, 1, name="block.0.0", **types)(outputs)
            outputs = activation(_norm("block.0.1", types)(outputs, train=train))
            number = 1
        depthwise = conv(
            width,
            config.size,
            stride=config.stride,
            groups=width,
            name=f"block.{number}.0",
            **types,
        )
        norm = _norm(f"block.{number}.1", types)
        outputs = activation(norm(depthwise(outputs), train=train))
        number += 1
        if config.excite:
            outputs = SqueezeExcitation(
                round_width(width // 4),
                activation=nn.relu,
                gate=nn.hard_sigmoid,
                name=f"block.{number}",
                **types,
            )(outputs)
            number += 1
        outputs = conv(config.width, 1, name=f"block.{number}.0", **types)(outputs)
        outputs = _norm(f"block.{number}.1", types)(outputs, train=train)
        return outputs + inputs if outputs.shape == inputs.shape else outputs


def _norm(name: str, types: dict[str, Any]) -> BatchNorm:
    return BatchNorm(momentum=0.01, epsilon=1e-3, name=name, **types)
