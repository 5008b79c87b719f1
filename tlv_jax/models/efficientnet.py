"""EfficientNet B0 to B7 and EfficientNetV2 S, M and L, as torchvision builds them.

"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946);
"EfficientNetV2: Smaller Models and Faster Training" (arXiv 2104.00298).

Shapes: images `[B, H, W, C]`; `D` is four times the last stage's width, 1280 in V2; `N` is
`num_classes`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import conv, round_width, stochastic_depth, uniform_within
from tlv_jax.models.squeeze_excitation import SqueezeExcitation

__all__ = ["VARIANTS", "EfficientNet", "EfficientNetConfig"]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One block.

    Attributes:
      expansion: channels between over channels of the inputs; at 1 nothing is expanded.
      size: of the kernel that filters.
      stride: of that kernel.
      width: output channels.
      fused: one dense convolution in place of the expansion and the depthwise one, and no
        squeeze-and-excitation.
    """

    expansion: int
    size: int
    stride: int
    width: int
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """What tells one EfficientNet from another.

    Attributes:
      stages: repeats and the first block of each, whose stride its repeats do not have.
      stem_width: output channels of the first convolution.
      head_width: of the last one.
      dropout: rate before the last layer; with `train=True` it needs the rng "dropout".
      epsilon: of the batch norms.
      momentum: of the batch norms.
    """

    stages: tuple[tuple[int, BlockConfig], ...]
    stem_width: int
    head_width: int
    dropout: float
    epsilon: float = 1e-5
    momentum: float = 0.1


_B0 = (
    (1, BlockConfig(expansion=1, size=3, stride=1, width=16)),
    (2, BlockConfig(expansion=6, size=3, stride=2, width=24)),
    (2, BlockConfig(expansion=6, size=5, stride=2, width=40)),
    (3, BlockConfig(expansion=6, size=3, stride=2, width=80)),
    (3, BlockConfig(expansion=6, size=5, stride=1, width=112)),
    (4, BlockConfig(expansion=6, size=5, stride=2, width=192)),
    (1, BlockConfig(expansion=6, size=3, stride=1, width=320)),
)
_V2_S = (
    (2, BlockConfig(expansion=1, size=3, stride=1, width=24, fused=True)),
    (4, BlockConfig(expansion=4, size=3, stride=2, width=48, fused=True)),
    (4, BlockConfig(expansion=4, size=3, stride=2, width=64, fused=True)),
    (6, BlockConfig(expansion=4, size=3, stride=2, width=128)),
    (9, BlockConfig(expansion=6, size=3, stride=1, width=160)),
    (15, BlockConfig(expansion=6, size=3, stride=2, width=256)),
)
_V2_M = (
    (3, BlockConfig(expansion=1, size=3, stride=1, width=24, fused=True)),
    (5, BlockConfig(expansion=4, size=3, stride=2, width=48, fused=True)),
    (5, BlockConfig(expansion=4, size=3, stride=2, width=80, fused=True)),
    (7, BlockConfig(expansion=4, size=3, stride=2, width=160)),
    (14, BlockConfig(expansion=6, size=3, stride=1, width=176)),
    (18, BlockConfig(expansion=6, size=3, stride=2, width=304)),
    (5, BlockConfig(expansion=6, size=3, stride=1, width=512)),
)
_V2_L = (
    (4, BlockConfig(expansion=1, size=3, stride=1, width=32, fused=True)),
    (7, BlockConfig(expansion=4, size=3, stride=2, width=64, fused=True)),
    (7, BlockConfig(expansion=4, size=3, stride=2, width=96, fused=True)),
    (10, BlockConfig(expansion=4, size=3, stride=2, width=192)),
    (19, BlockConfig(expansion=6, size=3, stride=1, width=224)),
    (25, BlockConfig(expansion=6, size=3, stride=2, width=384)),
    (7, BlockConfig(expansion=6, size=3, stride=1, width=640)),
)


def _scaled(
    width: float, depth: float, dropout: float, *, epsilon: float = 1e-5, momentum: float = 0.1
) -> EfficientNetConfig:
    stages = tuple(
        (
            math.ceil(repeats * depth),
            dataclasses.replace(block, width=round_width(block.width * width)),
        )
        for repeats, block in _B0
    )
    head = 4 * stages[-1][1].width
    return EfficientNetConfig(stages, round_width(32 * width), head, dropout, epsilon, momentum)


_LARGE = {"epsilon": 1e-3, "momentum": 0.01}  # TensorFlow's, in which these were trained
VARIANTS: Mapping[str, EfficientNetConfig] = MappingProxyType(
    {
        "efficientnet_b0": _scaled(1.0, 1.0, 0.2),
        "efficientnet_b1": _scaled(1.0, 1.1, 0.2),
        "efficientnet_b2": _scaled(1.1, 1.2, 0.3),
        "efficientnet_b3": _scaled(1.2, 1.4, 0.3),
        "efficientnet_b4": _scaled(1.4, 1.8, 0.4),
        "efficientnet_b5": _scaled(1.6, 2.2, 0.4, **_LARGE),
        "efficientnet_b6": _scaled(1.8, 2.6, 0.5, **_LARGE),
        "efficientnet_b7": _scaled(2.0, 3.1, 0.5, **_LARGE),
        "efficientnet_v2_s": EfficientNetConfig(_V2_S, 24, 1280, 0.2, epsilon=1e-3),
        "efficientnet_v2_m": EfficientNetConfig(_V2_M, 24, 1280, 0.3, epsilon=1e-3),
        "efficientnet_v2_l": EfficientNetConfig(_V2_L, 32, 1280, 0.4, epsilon=1e-3),
    }
)
_STOCHASTIC_DEPTH = 0.2  # grows from 0 at the first block towards this


def _blocks(config: EfficientNetConfig) -> Iterator[tuple[str, BlockConfig]]:
    for stage, (repeats, first) in enumerate(config.stages, start=1):
        for repeat in range(repeats):
            stride = first.stride if repeat == 0 else 1
            yield f"features.{stage}.{repeat}", dataclasses.replace(first, stride=stride)


class EfficientNet(nn.Module):
    """An EfficientNet whose parameters carry torchvision's names (`features.1.0/block.0.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: EfficientNetConfig
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
            kernel_init=uniform_within(self.num_classes**-0.5),
            name="classifier.1",
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images. `[B, H, W, C] -> [B, N]`."""
        return self.head(self.features(images, train=train), train=train)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Globally pooled features. `[B, H, W, C] -> [B, D]`.

        With `train=True` the residual branches are dropped at random, image by image, which needs
        the rng "dropout".

        Raises:
          ImageError: for images of another channel count.
        """
        check_images(images, channels=self.in_channels)
        config, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs = conv(config.stem_width, 3, stride=2, name="features.0.0", **types)(images)
        outputs = nn.silu(self._norm("features.0.1")(outputs, train=train))
        blocks = tuple(_blocks(config))
        for number, (name, block) in enumerate(blocks):
            rate = _STOCHASTIC_DEPTH * number / len(blocks)
            layer = Block(block, network=config, drop_rate=rate, name=name, **types)
            outputs = layer(outputs, train=train)
        last = f"features.{len(config.stages) + 1}"
        outputs = conv(config.head_width, 1, name=f"{last}.0", **types)(outputs)
        outputs = nn.silu(self._norm(f"{last}.1")(outputs, train=train))
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Dropout and the last layer. `[B, D] -> [B, N]`."""
        return self.logits(self.drop(features, deterministic=not train))

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(
            momentum=self.config.momentum,
            epsilon=self.config.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )


class Block(nn.Module):
    """An inverted residual block (MBConv), or its fused form.

    Attributes:
      config: its sizes.
      network: whose batch norms it shares.
      drop_rate: at which an image's residual branch is dropped in training.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    config: BlockConfig
    network: EfficientNetConfig
    drop_rate: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        config = self.config
        filtered = self._fused(inputs, train) if config.fused else self._separable(inputs, train)
        if config.stride != 1 or filtered.shape != inputs.shape:
            return filtered
        return stochastic_depth(self.drop_rate)(filtered, deterministic=not train) + inputs

    def _fused(self, inputs: jax.Array, train: bool) -> jax.Array:
        config, channels = self.config, inputs.shape[-1]
        width = round_width(channels * config.expansion)
        if width == channels:
            outputs = self._conv(0, inputs, config.width, config.size, train, stride=config.stride)
            return nn.silu(outputs)
        outputs = self._conv(0, inputs, width, config.size, train, stride=config.stride)
        return self._conv(1, nn.silu(outputs), config.width, 1, train)

    def _separable(self, inputs: jax.Array, train: bool) -> jax.Array:
        config, channels = self.config, inputs.shape[-1]
        width = round_width(channels * config.expansion)
        outputs, number = inputs, 0
        if width != channels:
            outputs, number = nn.silu(self._conv(0, inputs, width, 1, train)), 1
        outputs = self._conv(
            number, outputs, width, config.size, train, stride=config.stride, groups=width
        )
        excite = SqueezeExcitation(
            max(1, channels // 4),
            activation=nn.silu,
            gate=nn.sigmoid,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"block.{number + 1}",
        )
        return self._conv(number + 2, excite(nn.silu(outputs)), config.width, 1, train)

    def _conv(
        self,
        number: int,
        inputs: jax.Array,
        width: int,
        size: int,
        train: bool,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        name = f"block.{number}"
        layer = conv(width, size, stride=stride, groups=groups, name=f"{name}.0", **types)
        norm = BatchNorm(
            momentum=self.network.momentum,
            epsilon=self.network.epsilon,
            name=f"{name}.1",
            **types,
        )
        return norm(layer(inputs), train=train)
