"""ConvNeXt, tiny to large, as torchvision builds it.

"A ConvNet for the 2020s" (arXiv 2201.03545).

Shapes: images `[B, H, W, C]`; `D` is the last stage's width; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.images import check_images
from tlv_jax.models.layers import conv, stochastic_depth

__all__ = ["VARIANTS", "ConvNeXt", "ConvNeXtConfig"]

Four = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """What tells one ConvNeXt from another.

    Attributes:
      depths: number of blocks in each of the four stages.
      widths: of the stages.
      stochastic_depth: rate at the last block; it grows from zero at the first.
    """

    depths: Four
    widths: Four
    stochastic_depth: float


VARIANTS: Mapping[str, ConvNeXtConfig] = MappingProxyType(
    {
        "convnext_tiny": ConvNeXtConfig((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
        "convnext_small": ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768), 0.4),
        "convnext_base": ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024), 0.5),
        "convnext_large": ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536), 0.5),
    }
)
_normal = nn.initializers.normal(0.02)


class ConvNeXt(nn.Module):
    """A ConvNeXt whose parameters carry torchvision's names (`features.1.0/block.0`).

    Attributes:
      config: one of `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    config: ConvNeXtConfig
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:  # noqa: D102
        self.norm = _norm("classifier.0", self.dtype, self.param_dtype)
        self.logits = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=_normal,
            name="classifier.2",
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images. `[B, H, W, C] -> [B, N]`."""
        return self.head(self.features(images, train=train), train=train)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Globally pooled features. `[B, H, W, C] -> [B, D]`.

        With `train=True` the residual branches are dropped at random, image by image, which needs
        the rng "dropout".

        Raises:
          ImageError: for images of another channel count, or under 32 pixels a side.
        """
        check_images(images, channels=self.in_channels, smallest=32)
        config, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        last, number = sum(config.depths) - 1, 0
        outputs = images
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            outputs = self._downsampled(outputs, stage, width)
            for block in range(depth):
                rate = config.stochastic_depth * number / last
                layer = Block(rate, name=f"features.{2 * stage + 1}.{block}", **types)
                outputs = layer(outputs, train=train)
                number += 1
        return outputs.mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The last norm and the last layer. `[B, D] -> [B, N]`."""
        del train  # the layers behave the same either way
        return self.logits(self.norm(features))

    def _downsampled(self, inputs: jax.Array, stage: int, width: int) -> jax.Array:
        # The stem normalizes what it has patched, the others what they are about to patch.
        norm_number, size = (1, 4) if stage == 0 else (0, 2)
        norm = _norm(f"features.{2 * stage}.{norm_number}", self.dtype, self.param_dtype)
        patch = conv(
            width,
            size,
            stride=size,
            padding=0,
            use_bias=True,
            kernel_init=_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"features.{2 * stage}.{1 - norm_number}",
        )
        return norm(patch(inputs)) if stage == 0 else patch(norm(inputs))


class Block(nn.Module):
    """A 7x7 depthwise convolution and two dense layers over the channels, scaled and added.

    Attributes:
      drop_rate: at which an image's residual branch is dropped in training.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    drop_rate: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = inputs.shape[-1]
        depthwise = conv(
            width, 7, groups=width, use_bias=True, kernel_init=_normal, name="block.0", **types
        )
        outputs = _norm("block.2", self.dtype, self.param_dtype)(depthwise(inputs))
        outputs = nn.Dense(4 * width, kernel_init=_normal, name="block.3", **types)(outputs)
        outputs = nn.gelu(outputs, approximate=False)
        outputs = nn.Dense(width, kernel_init=_normal, name="block.5", **types)(outputs)
        scale = self.param(
            "layer_scale", nn.initializers.constant(1e-6), (width, 1, 1), self.param_dtype
        )
        outputs = outputs * scale.reshape(1, 1, 1, width).astype(outputs.dtype)
        return stochastic_depth(self.drop_rate)(outputs, deterministic=not train) + inputs


def _norm(name: str, dtype: Any, param_dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-6, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )
