"""MobileNetV3, large and small, as torchvision builds them.

"Searching for MobileNetV3" (arXiv 1905.02244), tables 1 and 2.

Shapes: images `[B, H, W, C]`; `D` is six times the last block's width; `N` is `num_classes`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import round_width
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
_norm = functools.partial(BatchNorm, momentum=0.01, epsilon=1e-3)


class MobileNetV3(Classifier):
    """A MobileNetV3 whose parameters carry torchvision's names (`features.1/block.0.0`)."""

    config: MobileNetV3Config

    def setup(self) -> None:  # noqa: D102
        normal = nn.initializers.normal(0.01)
        self.hidden = nn.Dense(
            self.config.hidden, kernel_init=normal, name="classifier.0", **self.types
        )
        self._make_last_layer("classifier.3", kernel_init=normal, dropout=self.config.dropout)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The two dense layers. `[B, D] -> [B, N]`."""
        return super().head(nn.hard_swish(self.hidden(features)), train=train)

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        convolve = functools.partial(self.conv_norm, train=train, norm=_norm)
        outputs = nn.hard_swish(convolve(images, _STEM_WIDTH, 3, "features.0", stride=2))
        for number, block in enumerate(self.config.blocks, start=1):
            outputs = Block(block, name=f"features.{number}", **self.types)(outputs, train=train)
        last = f"features.{len(self.config.blocks) + 1}"
        return nn.hard_swish(convolve(outputs, 6 * outputs.shape[-1], 1, last))


class Block(TypedModule):
    """Expands, filters each channel, excites, projects; adds the inputs where shapes allow.

    Attributes:
      config: its sizes.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        config, between = self.config, self.config.expanded
        activation = nn.hard_swish if config.swish else nn.relu
        convolve = functools.partial(self.conv_norm, train=train, norm=_norm)
        names = (f"block.{number}" for number in itertools.count())
        outputs = inputs
        if between != inputs.shape[-1]:
            outputs = activation(convolve(outputs, between, 1, next(names)))
        outputs = convolve(
            outputs, between, config.size, next(names), stride=config.stride, groups=between
        )
        outputs = activation(outputs)
        if config.excite:
            outputs = SqueezeExcitation(
                round_width(between // 4),
                activation=nn.relu,
                gate=nn.hard_sigmoid,
                name=next(names),
                **self.types,
            )(outputs)
        outputs = convolve(outputs, config.width, 1, next(names))
        return outputs + inputs if outputs.shape == inputs.shape else outputs
