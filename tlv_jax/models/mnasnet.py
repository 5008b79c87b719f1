"""MNASNet at four widths, as torchvision builds it.

MnasNet-B1 of "MnasNet: Platform-Aware Neural Architecture Search for Mobile" (arXiv 1807.11626).

Shapes: images `[B, H, W, C]`; `D` is 1280; `N` is `num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, round_width

__all__ = ["VARIANTS", "MNASNet", "MNASNetConfig"]


@dataclasses.dataclass(frozen=True)
class MNASNetConfig:
    """The multiplier of all widths, and the rate of the dropout before the last layer."""

    width: float
    dropout: float = 0.2


VARIANTS: Mapping[str, MNASNetConfig] = MappingProxyType(
    {
        "mnasnet0_5": MNASNetConfig(0.5),
        "mnasnet0_75": MNASNetConfig(0.75),
        "mnasnet1_0": MNASNetConfig(1.0),
        "mnasnet1_3": MNASNetConfig(1.3),
    }
)


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Blocks of one width: outputs, kernel size, stride of the first, expansion, repeats."""

    width: int
    size: int
    stride: int
    expansion: int
    repeats: int


_STACKS = (
    StackConfig(24, size=3, stride=2, expansion=3, repeats=3),
    StackConfig(40, size=5, stride=2, expansion=3, repeats=3),
    StackConfig(80, size=5, stride=2, expansion=6, repeats=3),
    StackConfig(96, size=3, stride=1, expansion=6, repeats=2),
    StackConfig(192, size=5, stride=2, expansion=6, repeats=4),
    StackConfig(320, size=3, stride=1, expansion=6, repeats=1),
)
_STEM_WIDTH, _FIRST_WIDTH, _HEAD_WIDTH = 32, 16, 1280
_FIRST_STACK = 8  # where the stacks begin in torch's numbering
# TensorFlow's decay, in which the networks were published.
_norm = functools.partial(BatchNorm, momentum=1 - 0.9997)


class MNASNet(Classifier):
    """An MNASNet whose parameters carry torchvision's names (`layers.8.0/layers.3`)."""

    config: MNASNetConfig

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer(
            "classifier.1",
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_out", "uniform"),
            dropout=self.config.dropout,
        )

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        types = self.types
        stem, first = (round_width(w * self.config.width) for w in (_STEM_WIDTH, _FIRST_WIDTH))
        outputs = conv(stem, 3, stride=2, name="layers.0", **types)(images)
        outputs = nn.relu(_norm(name="layers.1", **types)(outputs, train=train))
        outputs = conv(stem, 3, groups=stem, name="layers.3", **types)(outputs)
        outputs = nn.relu(_norm(name="layers.4", **types)(outputs, train=train))
        outputs = conv(first, 1, name="layers.6", **types)(outputs)
        outputs = _norm(name="layers.7", **types)(outputs, train=train)
        for stack, config in enumerate(_STACKS, start=_FIRST_STACK):
            for number in range(config.repeats):
                block = InvertedResidual(
                    width=round_width(config.width * self.config.width),
                    size=config.size,
                    stride=config.stride if number == 0 else 1,
                    expansion=config.expansion,
                    name=f"layers.{stack}.{number}",
                    **types,
                )
                outputs = block(outputs, train=train)
        last = _FIRST_STACK + len(_STACKS)
        outputs = conv(_HEAD_WIDTH, 1, name=f"layers.{last}", **types)(outputs)
        return nn.relu(_norm(name=f"layers.{last + 1}", **types)(outputs, train=train))


class InvertedResidual(TypedModule):
    """Expands, filters each channel, projects; adds the inputs where shapes allow.

    Attributes:
      width: output channels.
      size: of the depthwise kernel.
      stride: of the depthwise convolution.
      expansion: channels between over channels of the inputs.
    """

    width: int
    size: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types, between = self.types, inputs.shape[-1] * self.expansion
        outputs = conv(between, 1, name="layers.0", **types)(inputs)
        outputs = nn.relu(_norm(name="layers.1", **types)(outputs, train=train))
        depthwise = conv(
            between, self.size, stride=self.stride, groups=between, name="layers.3", **types
        )
        outputs = nn.relu(_norm(name="layers.4", **types)(depthwise(outputs), train=train))
        outputs = conv(self.width, 1, name="layers.6", **types)(outputs)
        outputs = _norm(name="layers.7", **types)(outputs, train=train)
        return outputs + inputs if outputs.shape == inputs.shape else outputs
