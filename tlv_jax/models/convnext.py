"""ConvNeXt, tiny to large, as torchvision builds it.

"A ConvNet for the 2020s" (arXiv 2201.03545).

Shapes: images `[B, H, W, C]`; `D` is the last stage's width; `N` is `num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax

from tlv_jax.models.classifier import Classifier, TypedModule
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
_norm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class ConvNeXt(Classifier):
    """A ConvNeXt whose parameters carry torchvision's names (`features.1.0/block.0`).

    With `train=True` residual branches are dropped at random, image by image.
    """

    config: ConvNeXtConfig
    _smallest: ClassVar[int] = 32

    def setup(self) -> None:  # noqa: D102
        self.norm = _norm(name="classifier.0", **self.types)
        self._make_last_layer("classifier.2", kernel_init=_normal)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The last norm and the last layer. `[B, D] -> [B, N]`."""
        del train  # both behave the same either way
        return self.logits(self.norm(features))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config = self.config
        last, number = sum(config.depths) - 1, 0
        outputs = images
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            outputs = self._downsampled(outputs, stage, width)
            for block in range(depth):
                rate = config.stochastic_depth * number / last
                layer = Block(rate, name=f"features.{2 * stage + 1}.{block}", **self.types)
                outputs = layer(outputs, train=train)
                number += 1
        return outputs

    def _downsampled(self, inputs: jax.Array, stage: int, width: int) -> jax.Array:
        # The stem normalizes what it has patched, the others what they are about to patch.
        norm_number, size = (1, 4) if stage == 0 else (0, 2)
        norm = _norm(name=f"features.{2 * stage}.{norm_number}", **self.types)
        patch = conv(
            width,
            size,
            stride=size,
            padding=0,
            use_bias=True,
            kernel_init=_normal,
            name=f"features.{2 * stage}.{1 - norm_number}",
            **self.types,
        )
        return norm(patch(inputs)) if stage == 0 else patch(norm(inputs))


class Block(TypedModule):
    """A 7x7 depthwise convolution and two dense layers over the channels, scaled and added.

    Attributes:
      drop_rate: at which an image's residual branch is dropped in training.
    """

    drop_rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        width, settings = inputs.shape[-1], {"kernel_init": _normal, **self.types}
        depthwise = conv(width, 7, groups=width, use_bias=True, name="block.0", **settings)
        outputs = _norm(name="block.2", **self.types)(depthwise(inputs))
        outputs = nn.Dense(4 * width, name="block.3", **settings)(outputs)
        outputs = nn.gelu(outputs, approximate=False)
        outputs = nn.Dense(width, name="block.5", **settings)(outputs)
        # The shape is torch's, whose channels come first.
        scale = self.param(
            "layer_scale", nn.initializers.constant(1e-6), (width, 1, 1), self.param_dtype
        )
        outputs = outputs * scale.reshape(1, 1, 1, width).astype(outputs.dtype)
        return stochastic_depth(self.drop_rate)(outputs, deterministic=not train) + inputs
