"""Each operation of RandAugment against Pillow, and how they are drawn."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from train.augment import augment
from train.config import Config, RecipeOptions
from train.errors import ConfigError
from train.randaugment import OPERATIONS, changed, rand_augment
from train.recipe import Recipe, recipe_of
from train.resolve import resolve

SIDE = 24
# Smooth, so that the rounding of coordinates does not show.
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] / SIDE
PIXELS = np.stack([ROWS, COLUMNS, np.sin(6 * ROWS * COLUMNS) / 2 + 0.5], -1)
SMOOTH = Image.fromarray((PIXELS * 200 + 30).astype(np.uint8))
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
# Pillow rounds down what it blends, and cuts coordinates into fractions.
TOLERANCES = {"posterize": 0, "sharpness": 2, "contrast": 2}
IMAGES = np.random.default_rng(0).integers(0, 256, (400, 6, 8, 3)).astype(np.uint8)
one_change = jax.jit(changed)
augmented = jax.jit(rand_augment)
by_recipe = jax.jit(augment, static_argnums=2)


def affine(a=1.0, b=0.0, c=0.0, d=1.0, x=0.0, y=0.0):
    """Pillow's, about the middle: of the place of a pixel the place that it comes from."""
    half = SIDE / 2
    numbers = (a, b, half - a * half - b * half + x, c, d, half - c * half - d * half + y)
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )


def pillows(operation, amount):
    turn, shift = amount * np.pi / 6, amount * 150 / 331 * SIDE
    factor = 1 + 0.9 * amount
    return {
        "rotate": affine(np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)),
        "shear_x": affine(b=0.3 * amount),
        "shear_y": affine(c=0.3 * amount),
        "translate_x": affine(x=shift),
        "translate_y": affine(y=shift),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "saturation": lambda image: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * abs(amount))),
    }[operation]


@pytest.mark.parametrize("amount", [-0.5, 0.9])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_pillows(operation, amount):
    amounts = amount * np.float32([operation == each for each in OPERATIONS])
    geometric = OPERATIONS.index(operation) < 5
    picture = SMOOTH if geometric else NOISE
    found = np.asarray(one_change(np.asarray(picture, np.float32), amounts))
    expected = np.asarray(pillows(operation, amount)(picture), np.float32)
    # Pillow does not blend the last pixels of a picture with the black around it.
    white = np.full(found.shape, 255, np.float32)
    inside = np.asarray(one_change(white, amounts)) == 255 if geometric else white == 255
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=TOLERANCES.get(operation, 1))
    assert np.abs(expected - np.asarray(picture, np.float32)).max() > 2


def test_no_strength_changes_nothing(key):
    np.testing.assert_array_equal(augmented(key, IMAGES, 0.0), IMAGES)


def test_images_are_changed_each_in_its_own_way(key):
    images = np.broadcast_to(IMAGES[0], IMAGES.shape)
    after = np.asarray(augmented(key, images, 5.0))
    assert after.dtype == np.uint8
    # One image in 121 draws no operation twice.
    assert 0.9 < (after != images).any((1, 2, 3)).mean() < 1
    assert len({image.tobytes() for image in after}) > 100
    far = np.abs(np.asarray(augmented(key, images, 10.0), int) - images).mean()
    assert far > np.abs(after.astype(int) - images).mean() > 1


def test_the_colours_of_grey_images_are_those_of_equal_channels():
    grey = np.float32(IMAGES[0, :, :, :1])
    amounts = np.float32([0, 0, 0, 0, 0, 0.2, -0.5, 0.9, 0.9, 0])
    equal = one_change(np.repeat(grey, 3, axis=2), amounts)
    np.testing.assert_array_equal(one_change(grey, amounts), equal[:, :, :1])


def test_a_recipe_without_strength_draws_what_it_drew_before(key):
    """The same bits: an offset, a mirror image, and nothing else."""
    key_crops, key_flips = jax.random.split(key)
    offsets = jax.random.randint(key_crops, (400, 2), 0, 9)
    padded = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)))
    cut = [
        image[y : y + 6, x : x + 8] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)
    ]
    flips = jax.random.bernoulli(key_flips, 0.5, (400,)).tolist()
    expected = [image[:, ::-1] if flip else image for image, flip in zip(cut, flips, strict=True)]
    np.testing.assert_array_equal(by_recipe(key, IMAGES, Recipe(augment_strength=0)), expected)


def test_a_recipe_has_a_strength(key):
    def recipe(strength):
        config = Config(recipe=RecipeOptions(augment_strength=strength))
        return recipe_of(resolve(config))

    strong, weak = (by_recipe(key, IMAGES, recipe(strength)) for strength in (9.0, None))
    assert (np.asarray(strong) != np.asarray(weak)).any((1, 2, 3)).mean() > 0.9
    with pytest.raises(ConfigError, match=r"augment_strength=11\.0, expected from 0 to 10"):
        recipe(11.0)
