"""GoogLeNet, as torchvision builds it.

"Going Deeper with Convolutions" (arXiv 1409.4842), with batch norm, and with 3x3 kernels where the
paper has 5x5 ones: the published weights were trained so.

Shapes: images `[B, H, W, C]`; `D` is 1024; `N` is `num_classes`.
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
from tlv_jax.models.images import check_images
from tlv_jax.models.inception_layers import ConvNorm, from_imagenet_statistics
from tlv_jax.models.layers import adaptive_average_pool, uniform_within
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "GoogLeNet", "GoogLeNetConfig", "GoogLeNetOutputs"]


class GoogLeNetOutputs(NamedTuple):
    """What a network with auxiliary heads returns in training, each `[B, N]`.

    Attributes:
      logits: of the last layer.
      aux_logits2: of the head behind `inception4d`.
      aux_logits1: of the head behind `inception4a`.
    """

    logits: jax.Array
    aux_logits2: jax.Array
    aux_logits1: jax.Array


class BlockConfig(NamedTuple):
    """Output channels of the four branches, and of the convolutions that reduce two of them."""

    branch1: int
    reduction2: int
    branch2: int
    reduction3: int
    branch3: int
    branch4: int


@dataclasses.dataclass(frozen=True)
class GoogLeNetConfig:
    """The blocks by name, in three stages.

    Attributes:
      stages: each follows a pooling.
      dropout: rate before the last layer.
      aux_dropout: dropout rate of the auxiliary heads.
    """

    stages: tuple[tuple[tuple[str, BlockConfig], ...], ...]
    dropout: float = 0.2
    aux_dropout: float = 0.7


VARIANTS: Mapping[str, GoogLeNetConfig] = MappingProxyType(
    {
        "googlenet": GoogLeNetConfig(
            (
                (
                    ("inception3a", BlockConfig(64, 96, 128, 16, 32, 32)),
                    ("inception3b", BlockConfig(128, 128, 192, 32, 96, 64)),
                ),
                (
                    ("inception4a", BlockConfig(192, 96, 208, 16, 48, 64)),
                    ("inception4b", BlockConfig(160, 112, 224, 24, 64, 64)),
                    ("inception4c", BlockConfig(128, 128, 256, 24, 64, 64)),
                    ("inception4d", BlockConfig(112, 144, 288, 32, 64, 64)),
                    ("inception4e", BlockConfig(256, 160, 320, 32, 128, 128)),
                ),
                (
                    ("inception5a", BlockConfig(256, 160, 320, 32, 128, 128)),
                    ("inception5b", BlockConfig(384, 192, 384, 48, 128, 128)),
                ),
            )
        )
    }
)
_normal = nn.initializers.normal(0.01)  # torch truncates at 2, which is never reached
_conv_norm = functools.partial(ConvNorm, kernel_init=_normal)


class GoogLeNet(Classifier):
    """A GoogLeNet whose parameters carry torchvision's names (`inception3a/branch2.0/conv`).

    Attributes:
      aux_logits: whether there are auxiliary heads, which work in training only.
      transform_input: whether images normalized by ImageNet's statistics are brought to those that
        the published weights were trained with. It needs three channels.
    """

    config: GoogLeNetConfig
    aux_logits: bool = True
    transform_input: bool = False
    _smallest: ClassVar[int] = 15

    def setup(self) -> None:  # noqa: D102
        if self.aux_logits:
            dropout = self.config.aux_dropout
            self.aux1 = AuxiliaryHead(self.num_classes, dropout, **self.types)
            self.aux2 = AuxiliaryHead(self.num_classes, dropout, **self.types)
        self._make_last_layer(
            "fc",
            kernel_init=_normal,
            bias_init=uniform_within(1024**-0.5),
            dropout=self.config.dropout,
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array | GoogLeNetOutputs:
        """Classifies images. `[B, H, W, C] -> [B, N]`.

        Returns:
          The logits, or with `train=True` and auxiliary heads those of all heads.

        Raises:
          ImageError: as `features`.
        """
        features, behind_4a, behind_4d = self._trunk(images, train=train)
        if not self.aux_logits or not (train or self.is_initializing()):
            return self.head(features, train=train)
        aux1 = self.aux1(behind_4a, train=train)
        aux2 = self.aux2(behind_4d, train=train)
        logits = self.head(features, train=train)
        return GoogLeNetOutputs(logits, aux2, aux1) if train else logits

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature maps, averaged over all places. `[B, H, W, C] -> [B, D]`.

        Raises:
          ImageError: for images of another channel count, or under 15 pixels a side.
        """
        return self._trunk(images, train=train)[0]

    @nn.compact
    def _trunk(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The features, and what the two auxiliary heads read."""
        check_images(images, channels=self.in_channels, smallest=self._smallest)
        outputs = from_imagenet_statistics(images) if self.transform_input else images
        outputs = _conv_norm(64, 7, stride=2, name="conv1", **self.types)(outputs, train=train)
        outputs = max_pool(outputs, 3, stride=2, ceil_mode=True)
        outputs = _conv_norm(64, 1, name="conv2", **self.types)(outputs, train=train)
        outputs = _conv_norm(192, 3, name="conv3", **self.types)(outputs, train=train)
        behind = {}
        for stage, pool_size in zip(self.config.stages, (3, 3, 2), strict=True):
            outputs = max_pool(outputs, pool_size, stride=2, ceil_mode=True)
            for name, block in stage:
                layer = Block(block, name=name, **self.types)
                outputs = behind[name] = layer(outputs, train=train)
        return outputs.mean((1, 2)), behind["inception4a"], behind["inception4d"]


class Block(TypedModule):
    """Four branches side by side.

    Attributes:
      config: their widths.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H, W, O]`, `O` the sum of the branches' widths."""

        def convolve(inputs: jax.Array, width: int, size: int, name: str) -> jax.Array:
            return _conv_norm(width, size, name=name, **self.types)(inputs, train=train)

        config = self.config
        first = convolve(inputs, config.branch1, 1, "branch1")
        second = convolve(inputs, config.reduction2, 1, "branch2.0")
        second = convolve(second, config.branch2, 3, "branch2.1")
        third = convolve(inputs, config.reduction3, 1, "branch3.0")
        third = convolve(third, config.branch3, 3, "branch3.1")
        fourth = max_pool(inputs, 3, stride=1, padding=1, ceil_mode=True)
        fourth = convolve(fourth, config.branch4, 1, "branch4.1")
        return jnp.concatenate((first, second, third, fourth), axis=-1)


class AuxiliaryHead(TypedModule):
    """Classifies from the middle of the network, for the sake of its gradients.

    Attributes:
      num_classes: size of the last layer.
      dropout: rate before the last layer.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, N]`."""
        outputs = adaptive_average_pool(inputs, 4)
        outputs = _conv_norm(128, 1, name="conv", **self.types)(outputs, train=train)
        outputs = outputs.reshape(outputs.shape[0], -1)
        outputs = nn.relu(self._dense(1024, "fc1", outputs))
        outputs = nn.Dropout(self.dropout)(outputs, deterministic=not train)
        return self._dense(self.num_classes, "fc2", outputs)

    def _dense(self, width: int, name: str, inputs: jax.Array) -> jax.Array:
        bias_init = uniform_within(inputs.shape[-1] ** -0.5)
        layer = nn.Dense(width, kernel_init=_normal, bias_init=bias_init, name=name, **self.types)
        return layer(inputs)
