"""EfficientNet B0 to B7 and EfficientNetV2 S, M and L, as torchvision builds them.

"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946);
"EfficientNetV2: Smaller Models and Faster Training" (arXiv 2104.00298).

Shapes: images `[B, H, W, C]`; `D` is four times the last stage's width, 1280 in V2; `N` is
`num_classes`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import round_width, stochastic_depth, uniform_within
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
      dropout: rate before the last layer.
      epsilon: of the batch norms.
      momentum: of the batch norms.
    """

    stages: tuple[tuple[int, BlockConfig], ...]
    stem_width: int
    head_width: int
    dropout: float
    epsilon: float = 1e-5
    momentum: float = 0.1

    @property
    def norm(self) -> Callable[..., BatchNorm]:
        """Makes a batch norm of this network, given its name and types."""
        return functools.partial(BatchNorm, momentum=self.momentum, epsilon=self.epsilon)


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


class EfficientNet(Classifier):
    """An EfficientNet whose parameters carry torchvision's names (`features.1.0/block.0.0`).

    With `train=True` residual branches are dropped at random, image by image.
    """

    config: EfficientNetConfig

    def setup(self) -> None:  # noqa: D102
        # torchvision bounds this draw by the number of outputs, not of inputs.
        self._make_last_layer(
            "classifier.1",
            kernel_init=uniform_within(self.num_classes**-0.5),
            dropout=self.config.dropout,
        )

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config = self.config
        convolve = functools.partial(self.conv_norm, train=train, norm=config.norm)
        outputs = nn.silu(convolve(images, config.stem_width, 3, "features.0", stride=2))
        blocks = tuple(_blocks(config))
        for number, (name, block) in enumerate(blocks):
            rate = _STOCHASTIC_DEPTH * number / len(blocks)
            layer = Block(block, network=config, drop_rate=rate, name=name, **self.types)
            outputs = layer(outputs, train=train)
        last = f"features.{len(config.stages) + 1}"
        return nn.silu(convolve(outputs, config.head_width, 1, last))


class Block(TypedModule):
    """An inverted residual block (MBConv), or its fused form.

    Attributes:
      config: its sizes.
      network: whose batch norms it shares.
      drop_rate: at which an image's residual branch is dropped in training.
    """

    config: BlockConfig
    network: EfficientNetConfig
    drop_rate: float

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
        convolve = functools.partial(self.conv_norm, train=train, norm=self.network.norm)
        between = round_width(channels * config.expansion)
        if between == channels:
            outputs = convolve(inputs, config.width, config.size, "block.0", stride=config.stride)
            return nn.silu(outputs)
        outputs = convolve(inputs, between, config.size, "block.0", stride=config.stride)
        return convolve(nn.silu(outputs), config.width, 1, "block.1")

    def _separable(self, inputs: jax.Array, train: bool) -> jax.Array:
        config, channels = self.config, inputs.shape[-1]
        convolve = functools.partial(self.conv_norm, train=train, norm=self.network.norm)
        names = (f"block.{number}" for number in itertools.count())
        between = round_width(channels * config.expansion)
        outputs = inputs
        if between != channels:
            outputs = nn.silu(convolve(outputs, between, 1, next(names)))
        outputs = convolve(
            outputs, between, config.size, next(names), stride=config.stride, groups=between
        )
        excite = SqueezeExcitation(
            max(1, channels // 4),  # of the block's inputs, not of what it expands them to
            activation=nn.silu,
            gate=nn.sigmoid,
            name=next(names),
            **self.types,
        )
        return convolve(excite(nn.silu(outputs)), config.width, 1, next(names))
