"""DenseNet 121, 161, 169 and 201, as torchvision builds them.

"Densely Connected Convolutional Networks" (arXiv 1608.06993).

Shapes: images `[B, H, W, C]`; `D` is 1024 for 121 to 2208 for 161; `N` is `num_classes`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, uniform_fan
from tlv_jax.models.pooling import max_pool

__all__ = ["VARIANTS", "DenseNet", "DenseNetConfig"]


@dataclasses.dataclass(frozen=True)
class DenseNetConfig:
    """What tells one DenseNet from another.

    Attributes:
      depths: number of layers in each of the four blocks.
      growth: channels that each layer adds.
      stem_width: output channels of the first convolution.
      dropout: rate after each layer, zero in all that are published.
    """

    depths: tuple[int, int, int, int]
    growth: int = 32
    stem_width: int = 64
    dropout: float = 0.0


VARIANTS: Mapping[str, DenseNetConfig] = MappingProxyType(
    {
        "densenet121": DenseNetConfig((6, 12, 24, 16)),
        "densenet161": DenseNetConfig((6, 12, 36, 24), growth=48, stem_width=96),
        "densenet169": DenseNetConfig((6, 12, 32, 32)),
        "densenet201": DenseNetConfig((6, 12, 48, 32)),
    }
)
_BOTTLENECK = 4  # channels between a layer's two convolutions, over its growth
_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseNet(Classifier):
    """A DenseNet whose parameters carry torchvision's names.

    Such as `features.denseblock1.denselayer1/conv1` and `features.transition1.norm`.
    """

    config: DenseNetConfig
    _smallest: ClassVar[int] = 29

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer("classifier", kernel_init=uniform_fan)

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config, types = self.config, self.types
        stem = conv(
            config.stem_width, 7, stride=2, kernel_init=_he_normal, name="features.conv0", **types
        )
        outputs = BatchNorm(name="features.norm0", **types)(stem(images), train=train)
        outputs = max_pool(nn.relu(outputs), 3, stride=2, padding=1)
        for stage, depth in enumerate(config.depths, start=1):
            if stage > 1:
                outputs = self._transition(f"features.transition{stage - 1}", outputs, train)
            for number in range(1, depth + 1):
                name = f"features.denseblock{stage}.denselayer{number}"
                layer = DenseLayer(config.growth, config.dropout, name=name, **types)
                outputs = jnp.concatenate((outputs, layer(outputs, train=train)), axis=-1)
        return nn.relu(BatchNorm(name="features.norm5", **types)(outputs, train=train))

    def _transition(self, name: str, inputs: jax.Array, train: bool) -> jax.Array:
        """Halves the channels and both sides."""
        outputs = nn.relu(BatchNorm(name=f"{name}.norm", **self.types)(inputs, train=train))
        squeeze = conv(
            inputs.shape[-1] // 2, 1, kernel_init=_he_normal, name=f"{name}.conv", **self.types
        )
        return nn.avg_pool(squeeze(outputs), (2, 2), strides=(2, 2))


class DenseLayer(TypedModule):
    """What one layer adds to all that came before it.

    Attributes:
      growth: output channels.
      dropout: rate at the outputs.
    """

    growth: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H, W, growth]`."""
        types = self.types
        outputs = nn.relu(BatchNorm(name="norm1", **types)(inputs, train=train))
        squeeze = conv(_BOTTLENECK * self.growth, 1, kernel_init=_he_normal, name="conv1", **types)
        outputs = nn.relu(BatchNorm(name="norm2", **types)(squeeze(outputs), train=train))
        outputs = conv(self.growth, 3, kernel_init=_he_normal, name="conv2", **types)(outputs)
        return nn.Dropout(self.dropout)(outputs, deterministic=not train)
