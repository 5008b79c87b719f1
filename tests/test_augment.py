import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.augment import PAD, augment, crop_and_flip, normalize

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (4, 4), (8, 3)])
def test_crop_and_flip_agree_with_numpy(offset, flip):
    padded = np.pad(IMAGES[0], ((PAD, PAD), (PAD, PAD), (0, 0)))
    expected = padded[offset[0] : offset[0] + 8, offset[1] : offset[1] + 10]
    expected = expected[:, ::-1] if flip else expected
    cropped = crop_and_flip(jnp.asarray(IMAGES[0]), jnp.array(offset), jnp.array(flip))
    np.testing.assert_array_equal(cropped, expected)


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
