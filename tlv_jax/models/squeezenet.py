"""SqueezeNet 1.0 and 1.1, as torchvision builds them.

"SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (arXiv 1602.07360).

Shapes: images `[B, H, W, C]`; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
_he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


class SqueezeNet(nn.Module):
    """A SqueezeNet whose parameters carry torchvision's names (`features.3/squeeze`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters; batch statistics stay float32.
    """

    config: SqueezeNetConfig
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.drop = nn.Dropout(self.config.dropout)
        self.logits = conv(
            self.num_classes,
            1,
            use_bias=True,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier.1",
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images. `[B, H, W, C] -> [B, N]`."""
        return self.head(self.features(images, train=train), train=train)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature map, not pooled. `[B, H, W, C] -> [B, H', W', 512]`.

        The network classifies each place and pools last, with a ReLU between, so to pool the
        features first would be another function. Feature crossover works on maps as on vectors.

        Raises:
          ImageError: for images of another channel count, or too small to pool three times.
        """
        del train  # nothing before the classifier behaves differently
        config, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        check_images(images, channels=self.in_channels, smallest=config.stem_size + 14)
        stem = conv(
            config.stem_width,
            config.stem_size,
            stride=2,
            padding=0,
            use_bias=True,
            kernel_init=_he_uniform,
            name="features.0",
            **types,
        )
        outputs, number = nn.relu(stem(images)), 2
        for stage in config.stages:
            outputs = max_pool(outputs, 3, stride=2, ceil_mode=True)
            for squeezed in stage:
                number += 1
                outputs = Fire(squeezed, name=f"features.{number}", **types)(outputs)
            number += 1
        return outputs

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Dropout, the last convolution, and the average over all places.

        `[B, H', W', 512] -> [B, N]`.
        """
        places = nn.relu(self.logits(self.drop(features, deterministic=not train)))
        return places.mean((1, 2))


class Fire(nn.Module):
    """Squeezes the channels, then expands them by 1x1 and 3x3 kernels side by side.

    Attributes:
      squeezed: channels between; four times as many leave each of the two sides.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    squeezed: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, I] -> [B, H, W, 8 * squeezed]`."""

        def convolve(width: int, size: int, name: str) -> nn.Conv:
            return conv(
                width,
                size,
                use_bias=True,
                kernel_init=_he_uniform,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        squeezed = nn.relu(convolve(self.squeezed, 1, "squeeze")(inputs))
        expanded = [
            nn.relu(convolve(4 * self.squeezed, size, f"expand{size}x{size}")(squeezed))
            for size in (1, 3)
        ]
        return jnp.concatenate(expanded, axis=-1)
