"""RegNetX and RegNetY, as torchvision builds them.

"Designing Network Design Spaces" (arXiv 2003.13678). The widths and depths are those that the
paper's linear rule gives, written out.

Shapes: images `[B, H, W, C]`; `D` is the last stage's width; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.classifier import Classifier, TypedModule
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


class RegNet(Classifier):
    """A RegNet whose parameters carry torchvision's names.

    Such as `trunk_output.block1.block1-0/f.a.0`.
    """

    config: RegNetConfig

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer("fc", kernel_init=nn.initializers.normal(0.01))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config = self.config
        outputs = nn.relu(self.conv_norm(images, _STEM_WIDTH, 3, "stem", train=train, stride=2))
        stages = zip(config.depths, config.widths, strict=True)
        for stage, (depth, width) in enumerate(stages, start=1):
            for number in range(depth):
                block = Block(
                    width,
                    groups=width // min(config.group_width, width),
                    stride=2 if number == 0 else 1,
                    excite=config.excite,
                    name=f"trunk_output.block{stage}.block{stage}-{number}",
                    **self.types,
                )
                outputs = block(outputs, train=train)
        return outputs


class Block(TypedModule):
    """A residual bottleneck of one width throughout.

    Attributes:
      width: output channels.
      groups: of the 3x3 convolution.
      stride: of the block, in its 3x3 convolution and in its shortcut.
      excite: whether squeeze-and-excitation follows the 3x3 convolution, with a quarter of the
        inputs' channels between.
    """

    width: int
    groups: int
    stride: int
    excite: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        width, stride, channels = self.width, self.stride, inputs.shape[-1]
        outputs = nn.relu(self.conv_norm(inputs, width, 1, "f.a", train=train))
        outputs = self.conv_norm(
            outputs, width, 3, "f.b", train=train, stride=stride, groups=self.groups
        )
        outputs = nn.relu(outputs)
        if self.excite:
            outputs = SqueezeExcitation(
                round(channels / 4), activation=nn.relu, gate=nn.sigmoid, name="f.se", **self.types
            )(outputs)
        outputs = self.conv_norm(outputs, width, 1, "f.c", train=train)
        if stride != 1 or channels != width:
            inputs = self.conv_norm(inputs, width, 1, "proj", train=train, stride=stride)
        return nn.relu(outputs + inputs)
