"""Augment and normalize images on the device.

Shapes: `[B, H, W, C]` uint8 in, `[B, H, W, 3]` float out.
"""

import jax
import jax.numpy as jnp
from jax import lax

from train.randaugment import rand_augment
from train.recipe import PUBLISHED, Recipe

__all__ = ["PAD", "augment", "normalize", "resize_box", "shift"]

PAD = 4  # pixels on every side before the random crop


def augment(key: jax.Array, images: jax.Array, recipe: Recipe = PUBLISHED) -> jax.Array:
    """Crops each image at random, mirrors some of them, and changes their colours or geometry.

    Published is zero padding by 4 pixels and a crop of the original size, as in TLVFC and common
    for CIFAR, and a mirror image of every second one.

    Args:
      key: consumed.
      images: `[B, H, W, C]` of any dtype, which is kept.
      recipe: has the kind of the crop, the probability of a mirror image, and the strength of the
        other changes.
    """
    key, key_changes = jax.random.split(key) if recipe.augment_strength else (key, None)
    key_crops, key_flips = jax.random.split(key)
    if recipe.crop == "shift":
        offsets = jax.random.randint(key_crops, (len(images), 2), 0, 2 * PAD + 1)
        images = jax.vmap(shift)(images, offsets)
    elif recipe.crop == "resized":
        boxes = _boxes(key_crops, images.shape[:3], recipe.crop_area)
        images = jax.vmap(resize_box)(images, *boxes)
    flips = jax.random.bernoulli(key_flips, recipe.flip, (len(images),))
    images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    if key_changes is None:
        return images
    return rand_augment(key_changes, images, recipe.augment_strength)


def shift(image: jax.Array, offset: jax.Array) -> jax.Array:
    """Pads an image `[H, W, C]` and crops it at `offset [2]`."""
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
    return lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def resize_box(image: jax.Array, corner: jax.Array, size: jax.Array) -> jax.Array:
    """Resizes a box of an image `[H, W, C]` to the whole image, bilinearly.

    Args:
      image: of any dtype, which is kept.
      corner: `[2]`, of the box, in pixels from the top and the left.
      size: `[2]`, height and width of the box in pixels.
    """
    scale = jnp.array(image.shape[:2]) / size
    resized = jax.image.scale_and_translate(
        image.astype(jnp.float32), image.shape, (0, 1), scale, -corner * scale, "linear"
    )
    if jnp.issubdtype(image.dtype, jnp.integer):
        resized = jnp.round(resized)
    return resized.astype(image.dtype)


def _boxes(key: jax.Array, shape: tuple[int, ...], smallest: float) -> tuple[jax.Array, jax.Array]:
    """Draws a box for each image `[B, H, W]`: corners and sizes, each `[B, 2]`.

    Areas and the logarithms of aspect ratios are uniform, as torchvision's RandomResizedCrop. A
    side that would be longer than the image is as long as it; torchvision draws such a box anew.
    """
    key_area, key_ratio, key_corner = jax.random.split(key, 3)
    count, *sides = shape
    area = jax.random.uniform(key_area, (count,), minval=smallest, maxval=1)
    area *= sides[0] * sides[1]
    log_ratio = jnp.log(4 / 3) * jax.random.uniform(key_ratio, (count,), minval=-1, maxval=1)
    ratio = jnp.exp(log_ratio)  # of width to height
    sizes = jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1))
    sizes = jnp.minimum(sizes, jnp.array([sides], sizes.dtype))
    room = jnp.array([sides]) - sizes
    return jax.random.uniform(key_corner, (count, 2)) * room, sizes


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
