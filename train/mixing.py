"""Mix the images and the labels of a batch: mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899).

Shapes: images `[B, H, W, C]`, labels `[B]`. Each image is mixed with the one before it in the
batch, the first with the last, as in torchvision's recipes: batches are in random order already.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.recipe import Recipe

__all__ = ["Mixture", "cutmix", "mix", "mixup"]


class Mixture(NamedTuple):
    """What the images of a batch were mixed with.

    Attributes:
      labels: `[B]`, of the images that were mixed in.
      share: `[]`, of each image's own label; the rest is the other's.
    """

    labels: jax.Array
    share: jax.Array


def mix(
    key: jax.Array, images: jax.Array, labels: jax.Array, recipe: Recipe
) -> tuple[jax.Array, Mixture]:
    """Mixes a batch as the recipe asks; where it asks for both ways, each batch draws one.

    Args:
      key: consumed.
      images: normalized.
      labels: of the images.
      recipe: has the two strengths, one of which is positive at least.

    Returns:
      The images, and what they were mixed with.
    """
    key_way, key_share, key_box = jax.random.split(key, 3)

    def mixed(_: None) -> tuple[jax.Array, jax.Array]:
        return mixup(images, jax.random.beta(key_share, recipe.mixup, recipe.mixup))

    def cut(_: None) -> tuple[jax.Array, jax.Array]:
        share = jax.random.beta(key_share, recipe.cutmix, recipe.cutmix)
        return cutmix(images, share, jax.random.uniform(key_box, (2,)))

    if recipe.mixup and recipe.cutmix:
        images, share = jax.lax.cond(jax.random.bernoulli(key_way), mixed, cut, None)
    else:
        images, share = mixed(None) if recipe.mixup else cut(None)
    return images, Mixture(jnp.roll(labels, 1), share)


def mixup(images: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blends each image with another one; `share []` is its own part."""
    others = jnp.roll(images, 1, axis=0)
    return (share * images + (1 - share) * others).astype(images.dtype), share


def cutmix(images: jax.Array, share: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replaces one box, the same in all images, by that of another image.

    Args:
      images: to mix.
      share: `[]`, of the pixels that stay, if the whole box is inside of the images.
      center: `[2]` in [0, 1), where the box is: its part outside of the images is cut off.

    Returns:
      The images, and the share of pixels that stayed.
    """
    sizes = jnp.array(images.shape[1:3])
    middle = jnp.floor(center * sizes)
    half = jnp.floor(0.5 * jnp.sqrt(1 - share) * sizes)
    inside_rows, inside_columns = (
        jnp.abs(jnp.arange(size) + 0.5 - middle[axis]) < half[axis]
        for axis, size in enumerate(images.shape[1:3])
    )
    inside = inside_rows[:, None] & inside_columns[None]
    others = jnp.roll(images, 1, axis=0)
    return jnp.where(inside[None, :, :, None], others, images), 1 - inside.mean()
