import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from train.augment import PAD, augment, normalize, resize_box, shift
from train.recipe import Recipe

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)


@pytest.mark.parametrize("offset", [(0, 0), (4, 4), (8, 3)])
def test_a_shift_agrees_with_numpy(offset):
    padded = np.pad(IMAGES[0], ((PAD, PAD), (PAD, PAD), (0, 0)))
    expected = padded[offset[0] : offset[0] + 8, offset[1] : offset[1] + 10]
    np.testing.assert_array_equal(shift(jnp.asarray(IMAGES[0]), jnp.array(offset)), expected)


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_images_are_mirrored_with_the_probability_that_is_given(key, flip):
    images = jnp.broadcast_to(jnp.asarray(IMAGES[0]), (2000, 8, 10, 3))
    augmented = np.asarray(augment(key, images, Recipe(crop="none", flip=flip)))
    mirrored = (augmented == IMAGES[0][:, ::-1]).all((1, 2, 3))
    assert ((augmented == IMAGES[0]).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(flip, abs=0.04)  # standard error 0.01


def test_a_box_is_resized_as_torch_resizes_it():
    box = IMAGES[0][2:6, 3:8]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(box.astype(np.float32)).permute(2, 0, 1)[None], (8, 10), mode="bilinear"
    )
    ours = resize_box(jnp.asarray(IMAGES[0]), jnp.array([2.0, 3.0]), jnp.array([4.0, 5.0]))
    assert ours.dtype == np.uint8
    expected = np.round(theirs[0].permute(1, 2, 0).numpy())
    # Ours sees the pixels around the box too, which count at its border.
    np.testing.assert_allclose(ours[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)


def test_the_whole_image_is_a_box():
    image = jnp.asarray(IMAGES[0])
    resized = resize_box(image, jnp.zeros(2), jnp.array([8.0, 10.0]))
    np.testing.assert_array_equal(resized, image)


def test_boxes_have_the_areas_and_ratios_that_are_asked_for(key):
    """Seen in images of coordinates: a crop of a plane is a plane with other corners."""
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    image = jnp.asarray(np.stack([rows, columns], -1))
    crops = np.asarray(
        augment(
            key,
            jnp.broadcast_to(image, (500, 32, 32, 2)),
            Recipe(crop="resized", crop_area=0.25, flip=0.0),
        )
    )
    # Pixel centres next to the border are inside of the box, by which the plane goes on.
    first, last = crops[:, 1, 1], crops[:, -2, -2]
    sizes = (last - first) * 32 / 29
    corners = first - 1.5 * sizes / 32 + 0.5
    shares = sizes.prod(-1) / 32**2
    assert (corners > -1e-2).all()
    assert (corners + sizes < 32 + 1e-2).all()
    assert 0.24 < shares.min() < 0.3
    assert 0.9 < shares.max() < 1.001
    assert shares.mean() == pytest.approx(0.62, abs=0.04)  # less at 0.625, where sides are cut
    ratios = sizes[:, 1] / sizes[:, 0]
    assert 0.74 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.34
    assert len({crop.tobytes() for crop in crops}) > 490


def test_every_augmented_image_is_some_crop_of_its_own(key):
    augmented = np.asarray(augment(key, jnp.asarray(IMAGES)))
    assert augmented.dtype == np.uint8
    for image, result in zip(IMAGES, augmented, strict=True):
        padded = np.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
        crops = [
            padded[row : row + 8, column : column + 10][:, ::step].tobytes()
            for row in range(2 * PAD + 1)
            for column in range(2 * PAD + 1)
            for step in (1, -1)
        ]
        assert result.tobytes() in crops


def test_images_of_a_batch_are_augmented_differently(key):
    same = jnp.broadcast_to(jnp.asarray(IMAGES[0]), (32, 8, 10, 3))
    assert len({image.tobytes() for image in np.asarray(augment(key, same))}) > 16
    assert not np.array_equal(augment(key, same), augment(jax.random.key(1), same))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalization_is_that_of_the_source(channels):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    images = IMAGES[..., :channels]
    normalized = normalize(jnp.asarray(images), mean, std, jnp.dtype("float32"))
    expected = (images / 255 - np.array(mean)) / np.array(std)
    assert normalized.shape == (6, 8, 10, 3)
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-5)
