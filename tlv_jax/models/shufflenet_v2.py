"""ShuffleNetV2 at four widths, as torchvision builds it.

"ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (arXiv 1807.11164).

Shapes: images `[B, H, W, C]`; `D` is 1024, or 2048 at twice the width; `N` is `num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, uniform_fan, uniform_within
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "ShuffleNetV2", "ShuffleNetV2Config"]


@dataclasses.dataclass(frozen=True)
class ShuffleNetV2Config:
    """Output channels of the three stages and of the last convolution, and units a stage."""

    widths: tuple[int, int, int]
    head_width: int = 1024
    depths: tuple[int, int, int] = (4, 8, 4)


VARIANTS: Mapping[str, ShuffleNetV2Config] = MappingProxyType(
    {
        "shufflenet_v2_x0_5": ShuffleNetV2Config((48, 96, 192)),
        "shufflenet_v2_x1_0": ShuffleNetV2Config((116, 232, 464)),
        "shufflenet_v2_x1_5": ShuffleNetV2Config((176, 352, 704)),
        "shufflenet_v2_x2_0": ShuffleNetV2Config((244, 488, 976), head_width=2048),
    }
)
_STEM_WIDTH = 24
_conv = functools.partial(conv, kernel_init=uniform_fan)


class ShuffleNetV2(Classifier):
    """A ShuffleNetV2 whose parameters carry torchvision's names (`stage2.0/branch1.0`)."""

    config: ShuffleNetV2Config

    def setup(self) -> None:  # noqa: D102
        bound = self.config.head_width**-0.5
        self._make_last_layer("fc", kernel_init=uniform_fan, bias_init=uniform_within(bound))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config, types = self.config, self.types
        outputs = _conv(_STEM_WIDTH, 3, stride=2, name="conv1.0", **types)(images)
        outputs = nn.relu(BatchNorm(name="conv1.1", **types)(outputs, train=train))
        outputs = max_pool(outputs, 3, stride=2, padding=1)
        stages = zip(config.depths, config.widths, strict=True)
        for stage, (depth, width) in enumerate(stages, start=2):
            for number in range(depth):
                stride = 2 if number == 0 else 1
                unit = Unit(width, stride, name=f"stage{stage}.{number}", **types)
                outputs = unit(outputs, train=train)
        outputs = _conv(config.head_width, 1, name="conv5.0", **types)(outputs)
        return nn.relu(BatchNorm(name="conv5.1", **types)(outputs, train=train))


class Unit(TypedModule):
    """Works on one half of the channels, or with stride 2 on all in two branches, then shuffles.

    Attributes:
      width: output channels.
      stride: of the block.
    """

    width: int
    stride: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        if self.stride == 1:
            passed, worked = jnp.split(inputs, 2, axis=-1)
        else:
            passed, worked = self._downsampled(inputs, train), inputs
        return _shuffled(jnp.concatenate((passed, self._branch(worked, train)), axis=-1))

    def _downsampled(self, inputs: jax.Array, train: bool) -> jax.Array:
        types, channels = self.types, inputs.shape[-1]
        outputs = _conv(channels, 3, stride=2, groups=channels, name="branch1.0", **types)(inputs)
        outputs = BatchNorm(name="branch1.1", **types)(outputs, train=train)
        outputs = _conv(self.width // 2, 1, name="branch1.2", **types)(outputs)
        return nn.relu(BatchNorm(name="branch1.3", **types)(outputs, train=train))

    def _branch(self, inputs: jax.Array, train: bool) -> jax.Array:
        types, half = self.types, self.width // 2
        outputs = _conv(half, 1, name="branch2.0", **types)(inputs)
        outputs = nn.relu(BatchNorm(name="branch2.1", **types)(outputs, train=train))
        depthwise = _conv(half, 3, stride=self.stride, groups=half, name="branch2.3", **types)
        outputs = BatchNorm(name="branch2.4", **types)(depthwise(outputs), train=train)
        outputs = _conv(half, 1, name="branch2.5", **types)(outputs)
        return nn.relu(BatchNorm(name="branch2.6", **types)(outputs, train=train))


def _shuffled(images: jax.Array) -> jax.Array:
    """Interleaves the two halves of the channels. `[B, H, W, C] -> [B, H, W, C]`."""
    *outer, channels = images.shape
    halves = images.reshape(*outer, 2, channels // 2)
    return halves.swapaxes(-1, -2).reshape(*outer, channels)
