"""EfficientNet-Lite 0, 1 and 2.

EfficientNet ("Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946)
without squeeze-and-excitation, with ReLU6, and with a stem, a head, and first and last stages that
do not scale. Names are those of the `efficientnet_pytorch` family of checkpoints.

Shapes: images `[B, H, W, C]`; `D` is 1280; `N` is `num_classes`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, round_width, stochastic_depth, uniform_within

__all__ = ["VARIANTS", "EfficientNetLite", "EfficientNetLiteConfig"]


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """What tells one EfficientNet-Lite from another.

    Attributes:
      width: multiplies the stages' channels.
      depth: multiplies the stages' repeats.
      dropout: rate before the last layer.
    """

    width: float
    depth: float
    dropout: float


VARIANTS: Mapping[str, EfficientNetLiteConfig] = MappingProxyType(
    {
        "efficientnet_lite0": EfficientNetLiteConfig(1.0, 1.0, 0.2),
        "efficientnet_lite1": EfficientNetLiteConfig(1.0, 1.1, 0.2),
        "efficientnet_lite2": EfficientNetLiteConfig(1.1, 1.2, 0.3),
    }
)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One inverted residual block: kernel size, stride, expansion of the inputs, outputs."""

    kernel: int
    stride: int
    expansion: int
    width: int


# One line a stage: repeats, then the first block, whose stride its repeats do not have.
_STAGES = (
    (1, BlockConfig(kernel=3, stride=1, expansion=1, width=16)),
    (2, BlockConfig(kernel=3, stride=2, expansion=6, width=24)),
    (2, BlockConfig(kernel=5, stride=2, expansion=6, width=40)),
    (3, BlockConfig(kernel=3, stride=2, expansion=6, width=80)),
    (3, BlockConfig(kernel=5, stride=1, expansion=6, width=112)),
    (4, BlockConfig(kernel=5, stride=2, expansion=6, width=192)),
    (1, BlockConfig(kernel=3, stride=1, expansion=6, width=320)),
)
_STEM_WIDTH, _HEAD_WIDTH = 32, 1280
_DROP_CONNECT = 0.2


def _blocks(config: EfficientNetLiteConfig) -> Iterator[BlockConfig]:
    for stage, (repeats, first) in enumerate(_STAGES):
        if 0 < stage < len(_STAGES) - 1:
            repeats = math.ceil(repeats * config.depth)
        first = dataclasses.replace(first, width=round_width(first.width * config.width))
        yield first
        for _ in range(repeats - 1):
            yield dataclasses.replace(first, stride=1)


# TensorFlow's padding, in which the weights were trained: uneven where a stride is 2.
_conv = functools.partial(conv, padding="SAME")
_norm = functools.partial(BatchNorm, momentum=0.01, epsilon=1e-3)


class EfficientNetLite(Classifier):
    """An EfficientNet-Lite whose parameters carry the checkpoints' names (`_blocks.0/_bn1`).

    With `train=True` residual branches are dropped at random, image by image.
    """

    config: EfficientNetLiteConfig

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer(
            "_fc",
            kernel_init=uniform_within(self.num_classes**-0.5),
            dropout=self.config.dropout,
        )

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        types = self.types
        outputs = _conv(_STEM_WIDTH, 3, stride=2, name="_conv_stem", **types)(images)
        outputs = nn.relu6(_norm(name="_bn0", **types)(outputs, train=train))
        blocks = tuple(_blocks(self.config))
        for number, block in enumerate(blocks):
            drop = _DROP_CONNECT * number / len(blocks)
            layer = Block(block, drop_connect=drop, name=f"_blocks.{number}", **types)
            outputs = layer(outputs, train=train)
        outputs = _conv(_HEAD_WIDTH, 1, name="_conv_head", **types)(outputs)
        return nn.relu6(_norm(name="_bn1", **types)(outputs, train=train))


class Block(TypedModule):
    """An inverted residual block: expand, filter each channel, project.

    Attributes:
      config: its sizes.
      drop_connect: rate at which an image's residual branch is dropped in training.
    """

    config: BlockConfig
    drop_connect: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        config, types, width = self.config, self.types, inputs.shape[-1] * self.config.expansion
        outputs = inputs
        if config.expansion != 1:
            outputs = _conv(width, 1, name="_expand_conv", **types)(outputs)
            outputs = nn.relu6(_norm(name="_bn0", **types)(outputs, train=train))
        depthwise = _conv(
            width,
            config.kernel,
            stride=config.stride,
            groups=width,
            name="_depthwise_conv",
            **types,
        )
        outputs = nn.relu6(_norm(name="_bn1", **types)(depthwise(outputs), train=train))
        outputs = _conv(config.width, 1, name="_project_conv", **types)(outputs)
        outputs = _norm(name="_bn2", **types)(outputs, train=train)
        if outputs.shape != inputs.shape:
            return outputs
        return stochastic_depth(self.drop_connect)(outputs, deterministic=not train) + inputs
