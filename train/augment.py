"""Augment and normalize images on the device.

Shapes: `[B, H, W, C]` uint8 in, `[B, H, W, 3]` float out.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["PAD", "augment", "crop_and_flip", "normalize"]

PAD = 4  # pixels on every side before the random crop


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pads each image, crops it at random, and mirrors half of them.

    Zero padding by 4 pixels and a crop of the original size, as in TLVFC and common for CIFAR.

    Args:
      key: consumed.
      images: `[B, H, W, C]` of any dtype, which is kept.
    """
    key_offsets, key_flips = jax.random.split(key)
    offsets = jax.random.randint(key_offsets, (len(images), 2), 0, 2 * PAD + 1)
    flips = jax.random.bernoulli(key_flips, shape=(len(images),))
    return jax.vmap(crop_and_flip)(images, offsets, flips)


def crop_and_flip(image: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
    """Pads an image `[H, W, C]` and crops it at `offset [2]`; mirrors it if `flip []`."""
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
    cropped = lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
    return jnp.where(flip, cropped[:, ::-1], cropped)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """Scales uint8 to [0, 1], subtracts `mean` and divides by `std`, each `[3]`.

    Grey images `[B, H, W, 1]` become three equal channels.
    """
    scaled = images.astype(jnp.float32) / 255
    shape = (1, 1, 1, 3)
    normalized = (scaled - jnp.array(mean).reshape(shape)) / jnp.array(std).reshape(shape)
    return normalized.astype(dtype)
