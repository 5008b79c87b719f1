"""SqueezeNet 1.0 and 1.1, as torchvision builds them.

"SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (arXiv 1602.07360).

Shapes: images `[B, H, W, C]`; `N` is `num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import conv
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "SqueezeNet", "SqueezeNetConfig"]


@dataclasses.dataclass(frozen=True)
class SqueezeNetConfig:
    """What tells one SqueezeNet from another.

    Attributes:
      stem_width: output channels of the first convolution.
      stem_size: side of its kernel.
      stages: of each stage the fire modules' squeezed channels, an eighth of what they return. A
        max pool goes before each stage.
      dropout: rate before the last convolution.
    """

    stem_width: int
    stem_size: int
    stages: tuple[tuple[int, ...], ...]
    dropout: float = 0.5


VARIANTS: Mapping[str, SqueezeNetConfig] = MappingProxyType(
    {
        "squeezenet1_0": SqueezeNetConfig(96, 7, ((16, 16, 32), (32, 48, 48, 64), (64,))),
        "squeezenet1_1": SqueezeNetConfig(64, 3, ((16, 16), (32, 32), (48, 48, 64, 64))),
    }
)
_conv = functools.partial(
    conv,
    use_bias=True,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),
)


class SqueezeNet(Classifier):
    """A SqueezeNet whose parameters carry torchvision's names (`features.3/squeeze`).

    Its last layer is a convolution: the network classifies every place of the last feature maps,
    applies a ReLU, and averages over the places last. `features` averages first. So `head` of
    `features` differs from plain `apply`, in this family alone.
    """

    config: SqueezeNetConfig

    def setup(self) -> None:  # noqa: D102
        self.drop = nn.Dropout(self.config.dropout)
        self.logits = conv(
            self.num_classes,
            1,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier.1",
            **self.types,
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies every place, then averages, as torchvision does. `[B, H, W, C] -> [B, N]`.

        This is not `head` of `features`, which averages first.

        Raises:
          ImageError: as `features`.
        """
        return self._classified(self._maps(images, train=train), train).mean((1, 2))

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """What the last convolution reads, averaged over all places. `[B, H, W, C] -> [B, 512]`.

        Dropout is not applied yet. `head` gives other logits from these features than plain `apply`
        from the images: there the average comes last, behind the convolution and a ReLU.

        Raises:
          ImageError: for images of another channel count, or too small to pool three times.
        """
        return self._maps(images, train=train).mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The logits of an image that has these features at every place. `[B, 512] -> [B, N]`.

        Dropout, the last convolution and a ReLU. They equal the logits of plain `apply` only if the
        features are the same at every place.
        """
        return self._classified(features[:, None, None, :], train)[:, 0, 0]

    def _classified(self, maps: jax.Array, train: bool) -> jax.Array:
        """The logits of every place, none below zero. `[B, H', W', 512] -> [B, H', W', N]`."""
        return nn.relu(self.logits(self.drop(maps, deterministic=not train)))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train  # nothing before the last convolution behaves differently
        config = self.config
        check_images(images, channels=self.in_channels, smallest=config.stem_size + 14)
        stem = _conv(
            config.stem_width,
            config.stem_size,
            stride=2,
            padding=0,
            name="features.0",
            **self.types,
        )
        # torch numbers every member of its Sequential, ReLUs and pools included.
        outputs, number = nn.relu(stem(images)), 2
        for stage in config.stages:
            outputs = max_pool(outputs, 3, stride=2, ceil_mode=True)
            for squeezed in stage:
                number += 1
                outputs = Fire(squeezed, name=f"features.{number}", **self.types)(outputs)
            number += 1
        return outputs


class Fire(TypedModule):
    """Squeezes the channels, then expands them by 1x1 and 3x3 kernels side by side.

    Attributes:
      squeezed: channels between; four times as many leave each of the two sides.
    """

    squeezed: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, I] -> [B, H, W, 8 * squeezed]`."""
        squeezed = nn.relu(_conv(self.squeezed, 1, name="squeeze", **self.types)(inputs))
        sides = [
            _conv(4 * self.squeezed, size, name=f"expand{size}x{size}", **self.types)
            for size in (1, 3)
        ]
        return jnp.concatenate([nn.relu(side(squeezed)) for side in sides], axis=-1)
