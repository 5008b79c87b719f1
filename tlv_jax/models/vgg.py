"""VGG 11, 13, 16 and 19, with and without batch norm.

The networks of "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv 1409.1556), table 1, columns A, B, D and E, as torchvision builds them.

Shapes: images `[B, H, W, C]`; `P` is `pool_size`, `N` `num_classes`.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import adaptive_average_pool, conv
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "VGG", "VGGConfig"]


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """What tells one VGG from another.

    Attributes:
      depths: number of convolutions in each of the five stages; a max pool ends a stage.
      batch_norm: whether each convolution is followed by a batch norm.
    """

    depths: tuple[int, ...]
    batch_norm: bool


WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
VARIANTS: Mapping[str, VGGConfig] = MappingProxyType(
    {
        name + suffix: VGGConfig(depths, batch_norm)
        for name, depths in _DEPTHS.items()
        for suffix, batch_norm in (("", False), ("_bn", True))
    }
)


class VGG(Classifier):
    """A VGG whose parameters carry torchvision's names (`features.0`, `classifier.6`).

    Attributes:
      pool_size: side of the adaptive average pool before the classifier. `model.clone(pool_size=1)`
        gives globally pooled features from the same convolutions; the classifier needs 7.
      dropout: rate between the classifier's layers.
    """

    config: VGGConfig
    pool_size: int = 7
    dropout: float = 0.5
    _smallest: ClassVar[int] = 32

    def setup(self) -> None:  # noqa: D102
        self.hidden = (self._dense(4096, 0), self._dense(4096, 3))
        self.logits = self._dense(self.num_classes, 6)
        self.drop = nn.Dropout(self.dropout)

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The flattened adaptive average pool. `[B, H, W, C] -> [B, P * P * 512]`.

        The order is that of `[P, P, 512]`, where torch's is that of `[512, P, P]`.

        Raises:
          ImageError: for images of another channel count, or under 32 pixels a side.
        """
        check_images(images, channels=self.in_channels, smallest=self._smallest)
        pooled = adaptive_average_pool(self._maps(images, train=train), self.pool_size)
        return pooled.reshape(pooled.shape[0], -1)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The three dense layers. `[B, P * P * 512] -> [B, N]`."""
        for dense in self.hidden:
            features = self.drop(nn.relu(dense(features)), deterministic=not train)
        return self.logits(features)

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        # torch numbers every member of its Sequential, ReLUs and pools included.
        number = itertools.count()
        outputs = images
        for width, depth in zip(WIDTHS, self.config.depths, strict=True):
            for _ in range(depth):
                name = f"features.{next(number)}"
                outputs = conv(width, 3, use_bias=True, name=name, **self.types)(outputs)
                if self.config.batch_norm:
                    norm = BatchNorm(name=f"features.{next(number)}", **self.types)
                    outputs = norm(outputs, train=train)
                outputs = nn.relu(outputs)
                next(number)
            outputs = max_pool(outputs, 2, stride=2)
            next(number)
        return outputs

    def _dense(self, width: int, number: int) -> nn.Dense:
        normal = nn.initializers.normal(0.01)
        return nn.Dense(width, kernel_init=normal, name=f"classifier.{number}", **self.types)
