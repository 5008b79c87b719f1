"""MNASNet at four widths, as torchvision builds it.

MnasNet-B1 of "MnasNet: Platform-Aware Neural Architecture Search for Mobile" (arXiv 1807.11626).

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
_MOMENTUM = 1 - 0.9997  # TensorFlow's decay, in which the networks were published


class MNASNet(nn.Module):
    """An MNASNet whose parameters carry torchvision's names (`layers.8.0/layers.3`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: MNASNetConfig
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
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_out", "uniform"),
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
        stem, first = (round_width(w * self.config.width) for w in (_STEM_WIDTH, _FIRST_WIDTH))
        outputs = conv(stem, 3, stride=2, name="layers.0", **types)(images)
        outputs = nn.relu(_norm("layers.1", types)(outputs, train=train))
        outputs = conv(stem, 3, groups=stem, name="layers.3", **types)(outputs)
        outputs = nn.relu(_norm("layers.4", types)(outputs, train=train))
        outputs = conv(first, 1, name="layers.6", **types)(outputs)
        outputs = _norm("layers.7", types)(outputs, train=train)
        for stack, config in enumerate(_STACKS, start=_FIRST_STACK):
            for repeat in range(config.repeats):
                block = InvertedResidual(
                    dataclasses.replace(
                        config,
                        width=round_width(config.width * self.config.width),
                        stride=config.stride if repeat == 0 else 1,
                    ),
                    name=f"layers.{stack}.{repeat}",
                    **types,
                )
                outputs = block(outputs, train=train)
        last = _FIRST_STACK + len(_STACKS)
        outputs = conv(_HEAD_WIDTH, 1, name=f"layers.{last}", **types)(outputs)
        outputs = nn.relu(_norm(f"layers.{last + 1}", types)(outputs, train=train))
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Dropout and the last layer. `[B, D] -> [B, N]`."""
        return self.logits(self.drop(features, deterministic=not train))


class InvertedResidual(nn.Module):
    """Expands, filters each channel, projects; adds the inputs where shapes allow.

    Attributes:
      config: its sizes; the number of repeats is not used.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    config: StackConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        config, width = self.config, inputs.shape[-1] * self.config.expansion
        outputs = conv(width, 1, name="layers.0", **types)(inputs)
        outputs = nn.relu(_norm("layers.1", types)(outputs, train=train))
        depthwise = conv(
            width, config.size, stride=config.stride, groups=width, name="layers.3", **types
        )
        outputs = nn.relu(_norm("layers.4", types)(depthwise(outputs), train=train))
        outputs = conv(config.width, 1, name="layers.6", **types)(outputs)
        outputs = _norm("layers.7", types)(outputs, train=train)
        return outputs + inputs if outputs.shape == inputs.shape else outputs


def _norm(name: str, types: dict[str, Any]) -> BatchNorm:
    return BatchNorm(momentum=_MOMENTUM, name=name, **types)
