"""ResNet 18 to 152, ResNeXt and Wide ResNet, as torchvision builds them.

"Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with the stride in the 3x3
convolution of a bottleneck ("v1.5"); "Aggregated Residual Transformations" (arXiv 1611.05431);
"Wide Residual Networks" (arXiv 1605.07146).

Shapes: images `[B, H, W, C]`; `D` is 512, or 2048 with bottlenecks; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, uniform_fan, uniform_within
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "ResNet", "ResNetConfig"]


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What tells one ResNet from another.

    Attributes:
      depths: number of blocks in each of the four stages.
      bottleneck: 1x1, 3x3, 1x1 convolutions in a block instead of two 3x3.
      groups: of the bottleneck's 3x3 convolution.
      group_width: channels of one group in the first stage.
    """

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    @property
    def expansion(self) -> int:
        """Output channels of a block over the width of its stage."""
        return 4 if self.bottleneck else 1


VARIANTS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
        "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
        "resnet50": ResNetConfig((3, 4, 6, 3)),
        "resnet101": ResNetConfig((3, 4, 23, 3)),
        "resnet152": ResNetConfig((3, 8, 36, 3)),
        "resnext50_32x4d": ResNetConfig((3, 4, 6, 3), groups=32, group_width=4),
        "resnext101_32x8d": ResNetConfig((3, 4, 23, 3), groups=32, group_width=8),
        "resnext101_64x4d": ResNetConfig((3, 4, 23, 3), groups=64, group_width=4),
        "wide_resnet50_2": ResNetConfig((3, 4, 6, 3), group_width=128),
        "wide_resnet101_2": ResNetConfig((3, 4, 23, 3), group_width=128),
    }
)


class ResNet(Classifier):
    """A ResNet whose parameters carry torchvision's names (`layer1.0/conv1`, `fc`)."""

    config: ResNetConfig

    def setup(self) -> None:  # noqa: D102
        bound = (512 * self.config.expansion) ** -0.5
        self._make_last_layer("fc", kernel_init=uniform_fan, bias_init=uniform_within(bound))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        outputs = conv(64, 7, stride=2, name="conv1", **self.types)(images)
        outputs = nn.relu(BatchNorm(name="bn1", **self.types)(outputs, train=train))
        outputs = max_pool(outputs, 3, stride=2, padding=1)
        for stage, depth in enumerate(self.config.depths):
            for number in range(depth):
                block = Block(
                    self.config,
                    width=64 * 2**stage,
                    stride=2 if stage > 0 and number == 0 else 1,
                    name=f"layer{stage + 1}.{number}",
                    **self.types,
                )
                outputs = block(outputs, train=train)
        return outputs


class Block(TypedModule):
    """A residual block, basic or bottleneck.

    Attributes:
      config: of the network.
      width: channels of the stage, before expansion.
      stride: of the block, in its first 3x3 convolution and in its shortcut.
    """

    config: ResNetConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width * expansion]`."""
        width = self.width * self.config.expansion
        convs = self._convs()
        outputs = inputs
        for number, layer in enumerate(convs, start=1):
            outputs = BatchNorm(name=f"bn{number}", **self.types)(layer(outputs), train=train)
            if number < len(convs):
                outputs = nn.relu(outputs)
        # After the branch, as torchvision does: layers are matched in order of execution.
        if self.stride != 1 or inputs.shape[-1] != width:
            inputs = self.conv_norm(inputs, width, 1, "downsample", train=train, stride=self.stride)
        return nn.relu(outputs + inputs)

    def _convs(self) -> tuple[nn.Conv, ...]:
        config, width, stride = self.config, self.width, self.stride
        if not config.bottleneck:
            return (
                conv(width, 3, stride=stride, name="conv1", **self.types),
                conv(width, 3, name="conv2", **self.types),
            )
        inner = width * config.group_width // 64 * config.groups
        return (
            conv(inner, 1, name="conv1", **self.types),
            conv(inner, 3, stride=stride, groups=config.groups, name="conv2", **self.types),
            conv(width * config.expansion, 1, name="conv3", **self.types),
        )
