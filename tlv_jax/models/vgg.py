"""VGG 11, 13, 16 and 19, with and without batch norm.

The networks of "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv 1409.1556), table 1, columns A, B, D and E, as torchvision builds them.

Shapes: images `[B, H, W, C]`; `P` is `pool_size`, `N` `num_classes`.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import adaptive_average_pool, conv

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


class VGG(nn.Module):
    """A VGG whose parameters carry torchvision's names (`features.0`, `classifier.6`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters.
      pool_size: side of the adaptive average pool before the classifier. `model.clone(pool_size=1)`
        gives globally pooled features from the same convolutions; the classifier needs 7.
      dropout: rate between the classifier's layers; with `train=True` it needs the rng "dropout".
    """

    config: VGGConfig
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    pool_size: int = 7
    dropout: float = 0.5

    def setup(self) -> None:  # noqa: D102
        self.hidden = (self._dense(4096, 0), self._dense(4096, 3))
        self.logits = self._dense(self.num_classes, 6)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images. `[B, H, W, C] -> [B, N]`."""
        return self.head(self.features(images, train=train), train=train)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The flattened adaptive average pool. `[B, H, W, C] -> [B, P * P * 512]`.

        The order is that of `[P, P, 512]`, where torch's is that of `[512, P, P]`.

        Raises:
          ImageError: for images of another channel count, or under 32 pixels a side.
        """
        check_images(images, channels=self.in_channels, smallest=2 ** len(self.config.depths))
        # torch numbers every member of its Sequential, ReLUs and pools included.
        number = itertools.count()
        outputs = images
        for width, depth in zip(WIDTHS, self.config.depths, strict=True):
            for _ in range(depth):
                outputs = self._conv(width, next(number))(outputs)
                if self.config.batch_norm:
                    outputs = self._norm(next(number))(outputs, train=train)
                outputs = nn.relu(outputs)
                next(number)
            outputs = nn.max_pool(outputs, (2, 2), strides=(2, 2))
            next(number)
        pooled = adaptive_average_pool(outputs, self.pool_size)
        return pooled.reshape(pooled.shape[0], -1)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The three dense layers. `[B, P * P * 512] -> [B, N]`."""
        for dense in self.hidden:
            features = self.drop(nn.relu(dense(features)), deterministic=not train)
        return self.logits(features)

    def _conv(self, width: int, number: int) -> nn.Conv:
        return conv(
            width,
            3,
            use_bias=True,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"features.{number}",
        )

    def _norm(self, number: int) -> BatchNorm:
        return BatchNorm(dtype=self.dtype, param_dtype=self.param_dtype, name=f"features.{number}")

    def _dense(self, width: int, number: int) -> nn.Dense:
        return nn.Dense(
            width,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(0.01),
            name=f"classifier.{number}",
        )
