"""RegNetX and RegNetY, as torchvision builds them.

"Designing Network Design Spaces" (arXiv 2003.13678). The widths and depths are those that the
paper's linear rule gives, written out.

Shapes: images `[B, H, W, C]`; `D` is the last stage's width; `N` is `num_classes`.
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
from tlv_jax.models.squeeze_excitation import SqueezeExcitation

__all__ = ["VARIANTS", "RegNet", "RegNetConfig"]

Four = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class RegNetConfig:
    """What tells one RegNet from another.

    Attributes:
      depths: number of blocks in each of the four stages.
      widths: of the stages.
      group_width: channels of a group in the 3x3 convolutions, or the whole width if that is less.
      excite: squeeze-and-excitation in every block, as in RegNetY.
    """

    depths: Four
    widths: Four
    group_width: int
    excite: bool = False


def _y(depths: Four, widths: Four, group_width: int) -> RegNetConfig:
    return RegNetConfig(depths, widths, group_width, excite=True)


VARIANTS: Mapping[str, RegNetConfig] = MappingProxyType(
    {
        "regnet_x_400mf": RegNetConfig((1, 2, 7, 12), (32, 64, 160, 400), 16),
        "regnet_x_800mf": RegNetConfig((1, 3, 7, 5), (64, 128, 288, 672), 16),
        "regnet_x_1_6gf": RegNetConfig((2, 4, 10, 2), (72, 168, 408, 912), 24),
        "regnet_x_3_2gf": RegNetConfig((2, 6, 15, 2), (96, 192, 432, 1008), 48),
        "regnet_x_8gf": RegNetConfig((2, 5, 15, 1), (80, 240, 720, 1920), 120),
        "regnet_x_16gf": RegNetConfig((2, 6, 13, 1), (256, 512, 896, 2048), 128),
        "regnet_x_32gf": RegNetConfig((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
        "regnet_y_400mf": _y((1, 3, 6, 6), (48, 104, 208, 440), 8),
        "regnet_y_800mf": _y((1, 3, 8, 2), (64, 144, 320, 784), 16),
        "regnet_y_1_6gf": _y((2, 6, 17, 2), (48, 120, 336, 888), 24),
        "regnet_y_3_2gf": _y((2, 5, 13, 1), (72, 216, 576, 1512), 24),
        "regnet_y_8gf": _y((2, 4, 10, 1), (224, 448, 896, 2016), 56),
        "regnet_y_16gf": _y((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
        "regnet_y_32gf": _y((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
        "regnet_y_128gf": _y((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
    }
)
_STEM_WIDTH = 32


class RegNet(nn.Module):
    """A RegNet whose parameters carry torchvision's names (`trunk_output.block1.block1-0/f.a.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: RegNetConfig
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.fc = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(0.01),
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
        config, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs = conv(_STEM_WIDTH, 3, stride=2, name="stem.0", **types)(images)
        outputs = nn.relu(BatchNorm(name="stem.1", **types)(outputs, train=train))
        for stage, (depth, width) in enumerate(
            zip(config.depths, config.widths, strict=True), start=1
        ):
            for number in range(depth):
                block = Block(
                    width,
                    groups=width // min(config.group_width, width),
                    stride=2 if number == 0 else 1,
                    excite=config.excite,
                    name=f"trunk_output.block{stage}.block{stage}-{number}",
                    **types,
                )
                outputs = block(outputs, train=train)
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The last layer. `[B, D] -> [B, N]`."""
        del train  # the layer behaves the same either way
        return self.fc(features)


class Block(nn.Module):
    """A residual bottleneck of one width throughout.

    Attributes:
      width: output channels.
      groups: of the 3x3 convolution.
      stride: of the block, in its 3x3 convolution and in its shortcut.
      excite: whether squeeze-and-excitation follows the 3x3 convolution, with a quarter of the
        inputs' channels between.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    width: int
    groups: int
    stride: int
    excite: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width, stride, channels = self.width, self.stride, inputs.shape[-1]
        outputs = conv(width, 1, name="f.a.0", **types)(inputs)
        outputs = nn.relu(BatchNorm(name="f.a.1", **types)(outputs, train=train))
        outputs = conv(width, 3, stride=stride, groups=self.groups, name="f.b.0", **types)(outputs)
        outputs = nn.relu(BatchNorm(name="f.b.1", **types)(outputs, train=train))
        if self.excite:
            outputs = SqueezeExcitation(
                round(channels / 4), activation=nn.relu, gate=nn.sigmoid, name="f.se", **types
            )(outputs)
        outputs = conv(width, 1, name="f.c.0", **types)(outputs)
        outputs = BatchNorm(name="f.c.1", **types)(outputs, train=train)
        if stride != 1 or channels != width:
            inputs = conv(width, 1, stride=stride, name="proj.0", **types)(inputs)
            inputs = BatchNorm(name="proj.1", **types)(inputs, train=train)
        return nn.relu(outputs + inputs)
