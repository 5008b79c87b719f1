"""MaxViT, as torchvision builds it.

"MaxViT: Multi-Axis Vision Transformer" (arXiv 2204.01697).

Shapes: images `[B, S, S, C]` with `S` of `image_size`; `D` is the last block's width; `N` is
`num_classes`; `G` groups of `P` pixels, which attend to each other.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.images import ImageError
from tlv_jax.models.layers import conv, stochastic_depth
from tlv_jax.models.pooling import avg_pool
from tlv_jax.models.squeeze_excitation import SqueezeExcitation
from tlv_jax.models.windows import from_windows, relative_position_index, to_windows

__all__ = ["VARIANTS", "MaxViT", "MaxViTConfig"]


@dataclasses.dataclass(frozen=True)
class MaxViTConfig:
    """What tells one MaxViT from another.

    Attributes:
      stem_width: output channels of the first two convolutions.
      widths: channels of each block.
      depths: number of layers in each block.
      stochastic_depth: rate at which the last layer's branches are dropped in training; it grows
        from 0 at the first.
      head_width: channels of one head of the attention.
      partition: pixels a side of a group.
    """

    stem_width: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stochastic_depth: float
    head_width: int = 32
    partition: int = 7

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """Names of the layers, each with its width and its stride."""
        for block, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for number in range(depth):
                yield f"blocks.{block}.layers.{number}", width, 2 if number == 0 else 1


VARIANTS: Mapping[str, MaxViTConfig] = MappingProxyType(
    {"maxvit_t": MaxViTConfig(64, (64, 128, 256, 512), (2, 2, 5, 2), stochastic_depth=0.2)}
)
_EXPANSION = 4  # of the convolution's channels, and of the dense layers'
_normal = nn.initializers.normal(0.02)
_batch_norm = functools.partial(BatchNorm, momentum=0.01, epsilon=1e-3)
_layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
_gelu = functools.partial(nn.gelu, approximate=False)


class MaxViT(Classifier):
    """A MaxViT whose parameters carry torchvision's names.

    Such as `blocks.0.layers.0/layers.MBconv/layers.conv_a.0`. With `train=True` residual branches
    are dropped at random, image by image.

    Attributes:
      image_size: pixels a side that images have, a multiple of 224, so that the groups divide the
        maps of every block. No parameter depends on it.
    """

    config: MaxViTConfig
    image_size: int = 224

    @property
    def image_size_unit(self) -> int:
        """What divides every possible `image_size`."""
        return self.config.partition * 2 ** (len(self.config.depths) + 1)

    def setup(self) -> None:  # noqa: D102
        settings = {"kernel_init": _normal, **self.types}
        self.norm = _layer_norm(name="classifier.2", **self.types)
        self.hidden = nn.Dense(self.config.widths[-1], name="classifier.3", **settings)
        self.logits = nn.Dense(self.num_classes, use_bias=False, name="classifier.5", **settings)

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """A norm and two dense layers. `[B, D] -> [B, N]`."""
        del train  # the layers behave the same either way
        return self.logits(jnp.tanh(self.hidden(self.norm(features))))

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        self._check_size(images)
        config, types = self.config, self.types
        settings = {"kernel_init": _normal, **types}
        outputs = conv(config.stem_width, 3, stride=2, name="stem.0.0", **settings)(images)
        outputs = _gelu(_batch_norm(name="stem.0.1", **types)(outputs, train=train))
        outputs = conv(config.stem_width, 3, use_bias=True, name="stem.1.0", **settings)(outputs)
        last = sum(config.depths) - 1
        for number, (name, width, stride) in enumerate(config.layers()):
            rate = config.stochastic_depth * number / last
            layer = Layer(config, width, stride, drop_rate=rate, name=name, **types)
            outputs = layer(outputs, train=train)
        return outputs

    def _check_size(self, images: jax.Array) -> None:
        size, unit, partition = self.image_size, self.image_size_unit, self.config.partition
        if size % unit or images.shape[1:3] != (size, size):
            raise ImageError(
                f"Images have shape {tuple(images.shape)} and image_size is {size}, expected "
                f"{size} pixels a side and a multiple of {unit}, which the groups of {partition} "
                f"pixels divide in every block. Resize them, or model.clone(image_size={unit} or a "
                "multiple)."
            )


class Layer(TypedModule):
    """A convolution, attention within windows, and attention across a grid.

    Attributes:
      config: of the network.
      width: output channels.
      stride: of the convolution.
      drop_rate: at which an image's residual branches are dropped in training.
    """

    config: MaxViTConfig
    width: int
    stride: int
    drop_rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        drop_rate, types = self.drop_rate, self.types
        convolve = MBConv(self.width, self.stride, drop_rate, name="layers.MBconv", **types)
        outputs = convolve(inputs, train=train)
        for name, grid in (("window_attention", False), ("grid_attention", True)):
            attend = PartitionAttention(
                self.config, grid, drop_rate, name=f"layers.{name}", **types
            )
            outputs = attend(outputs, train=train)
        return outputs


class MBConv(TypedModule):
    """An inverted residual block with squeeze-and-excitation, normalized before.

    Attributes:
      width: output channels.
      stride: of the depthwise convolution.
      drop_rate: at which an image's residual branch is dropped in training.
    """

    width: int
    stride: int
    drop_rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, I] -> [B, H / stride, W / stride, width]`."""
        types, settings = self.types, {"kernel_init": _normal, **self.types}
        passed = inputs
        if self.stride == 2:
            pooled = avg_pool(inputs, 3, stride=2, padding=1)
            passed = conv(self.width, 1, use_bias=True, name="proj.1", **settings)(pooled)
        between = _EXPANSION * self.width
        outputs = _batch_norm(name="layers.pre_norm", **types)(inputs, train=train)
        outputs = conv(between, 1, name="layers.conv_a.0", **settings)(outputs)
        outputs = _gelu(_batch_norm(name="layers.conv_a.1", **types)(outputs, train=train))
        filters = conv(
            between, 3, stride=self.stride, groups=between, name="layers.conv_b.0", **settings
        )
        outputs = _gelu(_batch_norm(name="layers.conv_b.1", **types)(filters(outputs), train=train))
        excite = SqueezeExcitation(
            self.width // 4,
            activation=nn.silu,
            gate=nn.sigmoid,
            name="layers.squeeze_excitation",
            **settings,
        )
        outputs = excite(outputs)
        outputs = conv(self.width, 1, use_bias=True, name="layers.conv_c", **settings)(outputs)
        return passed + stochastic_depth(self.drop_rate)(outputs, deterministic=not train)


class PartitionAttention(TypedModule):
    """Attention within groups and two dense layers, each normalized before and added after.

    Attributes:
      config: of the network.
      grid: whether a group is spread over the image, one pixel of each cell of a grid, instead of
        being a window.
      drop_rate: at which an image's residual branches are dropped in training.
    """

    config: MaxViTConfig
    grid: bool
    drop_rate: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        partition, sides = self.config.partition, (images.shape[1], images.shape[2])
        if not self.grid:
            groups = self._branches(to_windows(images, partition), train)
            return from_windows(groups, partition, sides)
        cell = sides[0] // partition
        groups = self._branches(to_windows(images, cell).swapaxes(1, 2), train)
        return from_windows(groups.swapaxes(1, 2), cell, sides)

    def _branches(self, groups: jax.Array, train: bool) -> jax.Array:
        drop, channels = stochastic_depth(self.drop_rate), groups.shape[-1]
        types, settings = self.types, {"kernel_init": _normal, **self.types}
        attend = RelativeAttention(self.config, name="attn_layer.1", **types)
        outputs = attend(_layer_norm(name="attn_layer.0", **types)(groups))
        groups = groups + drop(outputs, deterministic=not train)
        hidden = _layer_norm(name="mlp_layer.0", **types)(groups)
        hidden = nn.Dense(_EXPANSION * channels, name="mlp_layer.1", **settings)(hidden)
        outputs = nn.Dense(channels, name="mlp_layer.3", **settings)(_gelu(hidden))
        return groups + drop(outputs, deterministic=not train)


class RelativeAttention(TypedModule):
    """Attention among the pixels of a group, with a bias for each displacement.

    Attributes:
      config: of the network.
    """

    config: MaxViTConfig

    @nn.compact
    def __call__(self, groups: jax.Array) -> jax.Array:
        """`[B, G, P, C] -> [B, G, P, C]`."""
        size, channels = self.config.partition, groups.shape[-1]
        settings = {"kernel_init": _normal, **self.types}
        heads = channels // self.config.head_width
        shape = ((2 * size - 1) ** 2, heads)
        table = self.param("relative_position_bias_table", _normal, shape, self.param_dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        bias = table.astype(wide)[relative_position_index(size)].transpose(2, 0, 1)
        parts = nn.Dense(3 * channels, name="to_qkv", **settings)(groups)
        parts = parts.reshape(*groups.shape[:-1], 3, heads, self.config.head_width)
        query, key, value = (parts[..., part, :, :] for part in range(3))
        # torchvision scales by all channels where a head's are usual; its weights rest on it.
        key = key * channels**-0.5
        scores = jnp.einsum("bgqhc,bgkhc->bghqk", query, key, preferred_element_type=wide)
        weights = jax.nn.softmax(scores + jnp.expand_dims(bias, (0, 1))).astype(value.dtype)
        mixed = jnp.einsum("bghqk,bgkhc->bgqhc", weights, value).reshape(groups.shape)
        return nn.Dense(channels, name="merge", **settings)(mixed)
