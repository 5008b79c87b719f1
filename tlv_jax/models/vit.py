"""Vision transformers, as torchvision builds them.

"An Image is Worth 16x16 Words" (arXiv 2010.11929).

Shapes: images `[B, S, S, C]` with `S` of `image_size`; `T` tokens of `D` channels; `N` is
`num_classes`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.images import ImageError, check_images
from tlv_jax.models.layers import conv, uniform_fan

__all__ = ["VARIANTS", "ViT", "ViTConfig"]


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """What tells one vision transformer from another.

    Attributes:
      patch: pixels a side of what becomes a token.
      depth: number of blocks.
      heads: of the attention.
      width: channels of a token.
      hidden: channels between the two dense layers of a block.
    """

    patch: int
    depth: int
    heads: int
    width: int
    hidden: int


VARIANTS: Mapping[str, ViTConfig] = MappingProxyType(
    {
        "vit_b_16": ViTConfig(16, depth=12, heads=12, width=768, hidden=3072),
        "vit_b_32": ViTConfig(32, depth=12, heads=12, width=768, hidden=3072),
        "vit_l_16": ViTConfig(16, depth=24, heads=16, width=1024, hidden=4096),
        "vit_l_32": ViTConfig(32, depth=24, heads=16, width=1024, hidden=4096),
        "vit_h_14": ViTConfig(14, depth=32, heads=16, width=1280, hidden=5120),
    }
)
_norm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class ViT(Classifier):
    """A vision transformer whose parameters carry torchvision's names (`encoder/ln`).

    Attributes:
      image_size: pixels a side, to which the position embedding is bound; a multiple of the
        patch.
    """

    config: ViTConfig
    image_size: int = 224

    @property
    def image_size_unit(self) -> int:
        """What divides every possible `image_size`."""
        return self.config.patch

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer("heads.head", kernel_init=nn.initializers.zeros)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The class token after the last norm. `[B, S, S, C] -> [B, D]`.

        Raises:
          ImageError: for images of another channel count or size.
        """
        del train  # torchvision publishes these networks with all dropout rates at zero
        check_images(images, channels=self.in_channels)
        size, config = self.image_size, self.config
        if size % config.patch or images.shape[1:3] != (size, size):
            raise ImageError(
                f"Images have shape {tuple(images.shape)} and image_size is {size}, expected "
                f"{size} pixels a side, to which the position embedding is bound, and a multiple "
                f"of {config.patch}. Resize them, or importers.load(..., image_size=)."
            )
        stem = conv(
            config.width,
            config.patch,
            stride=config.patch,
            padding=0,
            use_bias=True,
            kernel_init=nn.initializers.lecun_normal(),
            name="conv_proj",
            **self.types,
        )
        patches = stem(images).reshape(images.shape[0], -1, config.width)
        token = self.param(
            "class_token", nn.initializers.zeros, (1, 1, config.width), self.param_dtype
        )
        tokens = jnp.broadcast_to(token, (images.shape[0], 1, config.width)).astype(patches.dtype)
        tokens = jnp.concatenate((tokens, patches), axis=1)
        return Encoder(config, name="encoder", **self.types)(tokens)[:, 0]


class Encoder(TypedModule):
    """Position embedding, blocks, and a last norm.

    Attributes:
      config: of the network.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        shape = (1, *tokens.shape[1:])
        initializer = nn.initializers.normal(0.02)
        positions = self.param("pos_embedding", initializer, shape, self.param_dtype)
        tokens = tokens + positions.astype(tokens.dtype)
        for number in range(self.config.depth):
            block = Block(self.config, name=f"layers.encoder_layer_{number}", **self.types)
            tokens = block(tokens)
        return _norm(name="ln", **self.types)(tokens)


class Block(TypedModule):
    """Attention and two dense layers, each normalized before and added after.

    Attributes:
      config: of the network.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        types = self.types
        attention = SelfAttention(self.config.heads, name="self_attention", **types)
        tokens = tokens + attention(_norm(name="ln_1", **types)(tokens))
        dense = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(1e-6),
            **types,
        }
        hidden = nn.Dense(self.config.hidden, name="mlp.0", **dense)(
            _norm(name="ln_2", **types)(tokens)
        )
        hidden = nn.gelu(hidden, approximate=False)
        return tokens + nn.Dense(self.config.width, name="mlp.3", **dense)(hidden)


class SelfAttention(TypedModule):
    """`torch.nn.MultiheadAttention` of tokens with themselves.

    Attributes:
      heads: among which the channels are divided.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        batch, count, width = tokens.shape
        xavier = nn.initializers.xavier_uniform()
        projection = nn.Dense(3 * width, kernel_init=xavier, name="in_proj", **self.types)
        parts = projection(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = (parts[:, :, part] for part in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(batch, count, width)
        return nn.Dense(width, kernel_init=uniform_fan, name="out_proj", **self.types)(mixed)
