"""AlexNet, in the one-column form of "One weird trick" (arXiv 1404.5997), as torchvision builds it.

Shapes: images `[B, H, W, C]`; `P` is `pool_size`, `N` `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax

from tlv_jax.models.classifier import Classifier
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import adaptive_average_pool, conv, uniform_fan, uniform_within
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "AlexNet", "AlexNetConfig"]


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """One convolution: its number in the Sequential, and its sizes."""

    number: int
    width: int
    size: int
    stride: int
    padding: int
    pooled: bool


@dataclasses.dataclass(frozen=True)
class AlexNetConfig:
    """The convolutions, and the rate of the dropout before each hidden dense layer."""

    convs: tuple[ConvConfig, ...]
    dropout: float = 0.5


VARIANTS: Mapping[str, AlexNetConfig] = MappingProxyType(
    {
        "alexnet": AlexNetConfig(
            (
                ConvConfig(0, 64, size=11, stride=4, padding=2, pooled=True),
                ConvConfig(3, 192, size=5, stride=1, padding=2, pooled=True),
                ConvConfig(6, 384, size=3, stride=1, padding=1, pooled=False),
                ConvConfig(8, 256, size=3, stride=1, padding=1, pooled=False),
                ConvConfig(10, 256, size=3, stride=1, padding=1, pooled=True),
            )
        )
    }
)


class AlexNet(Classifier):
    """An AlexNet whose parameters carry torchvision's names (`features.0`, `classifier.6`).

    Attributes:
      pool_size: side of the adaptive average pool before the classifier. `model.clone(pool_size=1)`
        gives globally pooled features from the same convolutions; the classifier needs 6.
    """

    config: AlexNetConfig
    pool_size: int = 6
    _smallest: ClassVar[int] = 63  # leaves one pixel for the last pool

    def setup(self) -> None:  # noqa: D102
        width = self.config.convs[-1].width
        inputs = (width * self.pool_size**2, 4096, 4096)
        widths = (4096, 4096, self.num_classes)
        self.dense = tuple(
            nn.Dense(
                out,
                kernel_init=uniform_fan,
                bias_init=uniform_within(fan_in**-0.5),
                name=f"classifier.{number}",
                **self.types,
            )
            for number, fan_in, out in zip((1, 4, 6), inputs, widths, strict=True)
        )
        self.drop = nn.Dropout(self.config.dropout)

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The flattened adaptive average pool. `[B, H, W, C] -> [B, P * P * 256]`.

        The order is that of `[P, P, 256]`, where torch's is that of `[256, P, P]`.

        Raises:
          ImageError: for images of another channel count, or under 63 pixels a side.
        """
        check_images(images, channels=self.in_channels, smallest=self._smallest)
        pooled = adaptive_average_pool(self._maps(images, train=train), self.pool_size)
        return pooled.reshape(pooled.shape[0], -1)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Dropout and the three dense layers. `[B, P * P * 256] -> [B, N]`."""
        *hidden, logits = self.dense
        for dense in hidden:
            features = nn.relu(dense(self.drop(features, deterministic=not train)))
        return logits(features)

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train  # nothing before the classifier behaves differently
        outputs = images
        for config in self.config.convs:
            fan_in = outputs.shape[-1] * config.size**2
            layer = conv(
                config.width,
                config.size,
                stride=config.stride,
                padding=config.padding,
                use_bias=True,
                kernel_init=uniform_fan,
                bias_init=uniform_within(fan_in**-0.5),
                name=f"features.{config.number}",
                **self.types,
            )
            outputs = nn.relu(layer(outputs))
            if config.pooled:
                outputs = max_pool(outputs, 3, stride=2)
        return outputs
