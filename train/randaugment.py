"""Two random changes of colour or geometry an image, of one strength.

Source: Cubuk et al. (2020), "RandAugment". The ranges are those of torchvision's `RandAugment`, of
whose operations `solarize`, `autocontrast` and `equalize` are left out. Images are interpolated
bilinearly, not by the nearest pixel.

Shapes: images `[B, H, W, C]` with values from 0 to 255, C of 1 or 3; one image `[H, W, C]` float.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

__all__ = ["OPERATIONS", "changed", "rand_augment"]

OPERATIONS = (
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("brightness", "contrast", "saturation", "sharpness", "posterize"),
)
STRONGEST = 10  # the largest strength
ROUNDS = 2  # operations on an image, as published
# What each operation does at the largest strength.
ANGLE = jnp.pi / 6
SHEAR = 0.3
TRANSLATION = 150 / 331  # of the side
FACTOR = 0.9  # how far from 1
BITS = 4  # that are cleared
LUMA = 0.299, 0.587, 0.114


def rand_augment(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Does two of `OPERATIONS`, or fewer as one choice is none, to each image.

    Args:
      key: consumed.
      images: `[B, H, W, C]`, whose dtype is kept; values from 0 to 255.
      strength: from 0, where nothing changes, to 10. The direction of a change is random.
    """
    result = images.astype(jnp.float32)
    for key_round in jax.random.split(key, ROUNDS):
        key_operations, key_directions = jax.random.split(key_round)
        drawn = jax.random.randint(key_operations, (len(images),), 0, len(OPERATIONS) + 1)
        directions = jax.random.rademacher(key_directions, (len(images),), jnp.float32)
        # The number behind the last operation is none.
        amounts = jax.nn.one_hot(drawn, len(OPERATIONS)) * directions[:, None]
        result = jax.vmap(changed)(result, amounts * strength / STRONGEST)
    return result.astype(images.dtype)


def changed(image: jax.Array, amounts: jax.Array) -> jax.Array:
    """Does each operation by its amount; an image of whole numbers stays so.

    All are done to all images, as an amount of 0 changes nothing: a program for many images cannot
    leave out what only some of them need.

    Args:
      image: `[H, W, C]`, float.
      amounts: `[10]` in the order of `OPERATIONS`, from -1 to 1.
    """
    angle, shear_x, shear_y, shift_x, shift_y, *factors, bits = amounts
    brightness, contrast, saturation, sharpness = (1 + FACTOR * factor for factor in factors)
    height, width, _ = image.shape
    shifts = TRANSLATION * width * shift_x, TRANSLATION * height * shift_y
    image = _warped(image, ANGLE * angle, (SHEAR * shear_x, SHEAR * shear_y), shifts)
    image = _blended(jnp.zeros_like(image), image, brightness)
    image = _blended(jnp.full_like(image, jnp.round(_grey(image).mean())), image, contrast)
    image = _blended(_grey(image), image, saturation)
    image = _blended(_smooth(image), image, sharpness)
    step = 2 ** jnp.round(BITS * jnp.abs(bits))
    return jnp.floor(image / step) * step


def _warped(
    image: jax.Array,
    angle: jax.Array,
    shear: tuple[jax.Array, jax.Array],
    shift: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Rotates, shears and moves an image about its middle; what comes from outside is black."""
    middle = [(side - 1) / 2 for side in image.shape[:2]]
    y, x = (place - half for place, half in zip(_places(image), middle, strict=True))
    from_x = jnp.cos(angle) * x - jnp.sin(angle) * y + shear[0] * y + shift[0] + middle[1]
    from_y = jnp.sin(angle) * x + jnp.cos(angle) * y + shear[1] * x + shift[1] + middle[0]

    def warped(channel: jax.Array) -> jax.Array:
        return map_coordinates(channel, [from_y, from_x], order=1)

    return jnp.round(jax.vmap(warped, 2, 2)(image))


def _places(image: jax.Array) -> list[jax.Array]:
    """Row and column of each pixel, `[H, W]` each."""
    return jnp.meshgrid(
        *(jnp.arange(side, dtype=image.dtype) for side in image.shape[:2]), indexing="ij"
    )


def _blended(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """The image at a factor of 1, the other one at 0; a factor above 1 exaggerates."""
    return jnp.clip(jnp.round(other + factor * (image - other)), 0, 255)


def _grey(image: jax.Array) -> jax.Array:
    """The same number of channels, all equal."""
    if image.shape[2] == 1:
        return image
    luma = jnp.round(image @ jnp.array(LUMA, image.dtype))
    return jnp.broadcast_to(luma[:, :, None], image.shape)


def _smooth(image: jax.Array) -> jax.Array:
    """Averages each pixel, which counts five times, and its eight neighbours; the border stays."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    inside = jnp.pad(jnp.ones((height - 2, width - 2, 1), bool), ((1, 1), (1, 1), (0, 0)))
    return jnp.where(inside, jnp.round((sum(windows) + 4 * image) / 13), image)
