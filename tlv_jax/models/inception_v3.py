"""InceptionV3, as torchvision builds it.

"Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567).

Shapes: images `[B, H, W, C]`; `D` is 2048; `N` is `num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.images import ImageError, check_images
from tlv_jax.models.inception_layers import ConvNorm, from_imagenet_statistics
from tlv_jax.models.layers import uniform_within
from tlv_jax.models.pooling import avg_pool, max_pool

__all__ = ["VARIANTS", "InceptionV3", "InceptionV3Config", "InceptionV3Outputs"]


class InceptionV3Outputs(NamedTuple):
    """What a network with an auxiliary head returns in training, each `[B, N]`.

    Attributes:
      logits: of the last layer.
      aux_logits: of the head behind `Mixed_6e`.
    """

    logits: jax.Array
    aux_logits: jax.Array


class ConvConfig(NamedTuple):
    """One convolution.

    Attributes:
      name: of the module.
      width: output channels.
      size: of the kernel, for both sides or for each.
      stride: for both sides; a convolution with stride 2 is not padded.
    """

    name: str
    width: int
    size: int | tuple[int, int]
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Branches side by side, the last of which pools.

    Attributes:
      branches: each a chain of convolutions; a tuple at its end forks.
      pool_width: output channels of the convolution behind the averages; 0 stands for maxima with
        stride 2 and no convolution.
    """

    branches: tuple[tuple[ConvConfig | tuple[ConvConfig, ConvConfig], ...], ...]
    pool_width: int


@dataclasses.dataclass(frozen=True)
class InceptionV3Config:
    """The blocks by name.

    Attributes:
      blocks: in order of execution.
      dropout: rate before the last layer.
    """

    blocks: tuple[tuple[str, BlockConfig], ...]
    dropout: float = 0.5


def _fine(pool_width: int) -> BlockConfig:
    return BlockConfig(
        (
            (ConvConfig("branch1x1", 64, 1),),
            (ConvConfig("branch5x5_1", 48, 1), ConvConfig("branch5x5_2", 64, 5)),
            (
                ConvConfig("branch3x3dbl_1", 64, 1),
                ConvConfig("branch3x3dbl_2", 96, 3),
                ConvConfig("branch3x3dbl_3", 96, 3),
            ),
        ),
        pool_width,
    )


def _middle(width: int) -> BlockConfig:
    row, column = (1, 7), (7, 1)
    return BlockConfig(
        (
            (ConvConfig("branch1x1", 192, 1),),
            (
                ConvConfig("branch7x7_1", width, 1),
                ConvConfig("branch7x7_2", width, row),
                ConvConfig("branch7x7_3", 192, column),
            ),
            (
                ConvConfig("branch7x7dbl_1", width, 1),
                ConvConfig("branch7x7dbl_2", width, column),
                ConvConfig("branch7x7dbl_3", width, row),
                ConvConfig("branch7x7dbl_4", width, column),
                ConvConfig("branch7x7dbl_5", 192, row),
            ),
        ),
        pool_width=192,
    )


_TO_MIDDLE = BlockConfig(
    (
        (ConvConfig("branch3x3", 384, 3, stride=2),),
        (
            ConvConfig("branch3x3dbl_1", 64, 1),
            ConvConfig("branch3x3dbl_2", 96, 3),
            ConvConfig("branch3x3dbl_3", 96, 3, stride=2),
        ),
    ),
    pool_width=0,
)
_TO_COARSE = BlockConfig(
    (
        (ConvConfig("branch3x3_1", 192, 1), ConvConfig("branch3x3_2", 320, 3, stride=2)),
        (
            ConvConfig("branch7x7x3_1", 192, 1),
            ConvConfig("branch7x7x3_2", 192, (1, 7)),
            ConvConfig("branch7x7x3_3", 192, (7, 1)),
            ConvConfig("branch7x7x3_4", 192, 3, stride=2),
        ),
    ),
    pool_width=0,
)
_COARSE = BlockConfig(
    (
        (ConvConfig("branch1x1", 320, 1),),
        (
            ConvConfig("branch3x3_1", 384, 1),
            (ConvConfig("branch3x3_2a", 384, (1, 3)), ConvConfig("branch3x3_2b", 384, (3, 1))),
        ),
        (
            ConvConfig("branch3x3dbl_1", 448, 1),
            ConvConfig("branch3x3dbl_2", 384, 3),
            (
                ConvConfig("branch3x3dbl_3a", 384, (1, 3)),
                ConvConfig("branch3x3dbl_3b", 384, (3, 1)),
            ),
        ),
    ),
    pool_width=192,
)
VARIANTS: Mapping[str, InceptionV3Config] = MappingProxyType(
    {
        "inception_v3": InceptionV3Config(
            (
                ("Mixed_5b", _fine(32)),
                ("Mixed_5c", _fine(64)),
                ("Mixed_5d", _fine(64)),
                ("Mixed_6a", _TO_MIDDLE),
                ("Mixed_6b", _middle(128)),
                ("Mixed_6c", _middle(160)),
                ("Mixed_6d", _middle(160)),
                ("Mixed_6e", _middle(192)),
                ("Mixed_7a", _TO_COARSE),
                ("Mixed_7b", _COARSE),
                ("Mixed_7c", _COARSE),
            )
        )
    }
)
_AUXILIARY_SIDE = 17  # pixels that the auxiliary head needs, those of 299 in the images
_normal = nn.initializers.normal(0.1)  # torch truncates at 2, which is never reached
_conv_norm = functools.partial(ConvNorm, kernel_init=_normal)


class InceptionV3(Classifier):
    """An InceptionV3 whose parameters carry torchvision's names (`Mixed_5b/branch5x5_1/conv`).

    Attributes:
      aux_logits: whether there is an auxiliary head, which works in training only.
      transform_input: whether images normalized by ImageNet's statistics are brought to those that
        the published weights were trained with. It needs three channels.
    """

    config: InceptionV3Config
    aux_logits: bool = True
    transform_input: bool = False
    _smallest: ClassVar[int] = 75

    def setup(self) -> None:  # noqa: D102
        if self.aux_logits:
            self.auxiliary = AuxiliaryHead(self.num_classes, name="AuxLogits", **self.types)
        self._make_last_layer(
            "fc",
            kernel_init=_normal,
            bias_init=uniform_within(2048**-0.5),
            dropout=self.config.dropout,
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array | InceptionV3Outputs:
        """Classifies images. `[B, H, W, C] -> [B, N]`.

        Returns:
          The logits, or with `train=True` and an auxiliary head those of both heads.

        Raises:
          ImageError: as `features`, and for images under 299 pixels a side where the auxiliary
            head is at work.
        """
        features, behind_6e = self._trunk(images, train=train)
        if not self.aux_logits or not (train or self.is_initializing()):
            return self.head(features, train=train)
        if min(behind_6e.shape[1:3]) < _AUXILIARY_SIDE and not self.is_initializing():
            raise ImageError(
                f"Images have shape {tuple(images.shape)}, expected at least 299 pixels a side for "
                "the auxiliary head. Resize them, or model.clone(aux_logits=False)."
            )
        aux_logits = self.auxiliary(behind_6e, train=train)
        logits = self.head(features, train=train)
        return InceptionV3Outputs(logits, aux_logits) if train else logits

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature maps, averaged over all places. `[B, H, W, C] -> [B, D]`.

        Raises:
          ImageError: for images of another channel count, or under 75 pixels a side.
        """
        return self._trunk(images, train=train)[0]

    @nn.compact
    def _trunk(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """The features, and what the auxiliary head reads."""
        check_images(images, channels=self.in_channels, smallest=self._smallest)
        types = self.types
        outputs = from_imagenet_statistics(images) if self.transform_input else images
        stem = (
            _conv_norm(32, 3, stride=2, padding=0, name="Conv2d_1a_3x3", **types),
            _conv_norm(32, 3, padding=0, name="Conv2d_2a_3x3", **types),
            _conv_norm(64, 3, name="Conv2d_2b_3x3", **types),
            _conv_norm(80, 1, name="Conv2d_3b_1x1", **types),
            _conv_norm(192, 3, padding=0, name="Conv2d_4a_3x3", **types),
        )
        for layer in stem:
            outputs = layer(outputs, train=train)
            if layer.name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                outputs = max_pool(outputs, 3, stride=2)
        behind = {}
        for name, config in self.config.blocks:
            block = Block(config, name=name, **types)
            outputs = behind[name] = block(outputs, train=train)
        return outputs.mean((1, 2)), behind["Mixed_6e"]


class Block(TypedModule):
    """Branches side by side.

    Attributes:
      config: the branches.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H', W', O]`, `O` the sum of the branches' widths."""
        outputs = []
        for branch in self.config.branches:
            ends = [inputs]
            for step in branch:
                fork = (step,) if isinstance(step, ConvConfig) else step
                ends = [self._conv(config, ends[0], train) for config in fork]
            outputs += ends
        if self.config.pool_width:
            means = avg_pool(inputs, 3, stride=1, padding=1)
            projection = ConvConfig("branch_pool", self.config.pool_width, 1)
            outputs.append(self._conv(projection, means, train))
        else:
            outputs.append(max_pool(inputs, 3, stride=2))
        return jnp.concatenate(outputs, axis=-1)

    def _conv(self, config: ConvConfig, inputs: jax.Array, train: bool) -> jax.Array:
        layer = _conv_norm(
            config.width,
            config.size,
            stride=config.stride,
            padding=0 if config.stride == 2 else None,
            name=config.name,
            **self.types,
        )
        return layer(inputs, train=train)


class AuxiliaryHead(TypedModule):
    """Classifies from the middle of the network, for the sake of its gradients.

    Attributes:
      num_classes: size of the last layer.
    """

    num_classes: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, N]`."""
        types = self.types
        outputs = nn.avg_pool(inputs, (5, 5), strides=(3, 3))
        outputs = _conv_norm(128, 1, name="conv0", **types)(outputs, train=train)
        outputs = _conv_norm(768, 5, padding=0, name="conv1", **types)(outputs, train=train)
        classify = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.001),
            bias_init=uniform_within(768**-0.5),
            name="fc",
            **types,
        )
        return classify(outputs.mean((1, 2)))
