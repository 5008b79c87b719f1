import dataclasses

import numpy as np
import pytest
import torch
from helpers import import_torchvision
from PIL import Image

from importers import Preprocess
from importers.weights import WEIGHTS
from tlv_jax.errors import OptionError
from tlv_jax.models import ImageError

import_torchvision()
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms._presets import ImageClassification  # noqa: E402

PUBLISHED = sorted(
    {weights.preprocess for name in WEIGHTS for weights in WEIGHTS[name]},
    key=dataclasses.astuple,
)
PADDED = [Preprocess(resize=30, crop=33), Preprocess(resize=31, crop=64, interpolation="bicubic")]


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def prepared_by_torchvision(preprocess, image):
    reference = ImageClassification(
        crop_size=preprocess.crop,
        resize_size=preprocess.resize,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=InterpolationMode(preprocess.interpolation),
    )
    return torch.stack([reference(image)]).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("preprocess", [*PUBLISHED, *PADDED], ids=str)
@pytest.mark.parametrize("size", [(300, 451), (451, 300), (256, 256), (97, 40)])
def test_pictures_are_prepared_as_torchvision_does(preprocess, size):
    image = Image.fromarray(picture(*size))
    actual = preprocess(image)
    assert actual.dtype == np.float32
    expected = prepared_by_torchvision(preprocess, image)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preprocess", [*PUBLISHED, *PADDED], ids=str)
@pytest.mark.parametrize("size", [(333, 500), (41, 40)])
def test_pixels_are_torchvisions_bit_for_bit(preprocess, size):
    plain = dataclasses.replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = Image.fromarray(picture(*size))
    np.testing.assert_array_equal(plain(image), prepared_by_torchvision(plain, image))


@pytest.mark.parametrize("crop", [7, 8, 9, 10])
@pytest.mark.parametrize("size", [(8, 8), (8, 9), (9, 8), (8, 11), (12, 8), (8, 30), (1, 5)])
def test_crops_are_torchvisions_at_every_parity(size, crop):
    preprocess, image = Preprocess(resize=8, crop=crop), Image.fromarray(picture(*size))
    expected = prepared_by_torchvision(preprocess, image)
    np.testing.assert_allclose(preprocess(image), expected, rtol=1e-6, atol=1e-6)


def test_arrays_images_and_lists_of_them_agree():
    preprocess, array = Preprocess(resize=20, crop=16), picture(25, 31)
    expected = preprocess(array)
    assert expected.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(preprocess(Image.fromarray(array)), expected)
    several = preprocess([array, Image.fromarray(array), picture(16, 50)])
    assert several.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(several[1], expected[0])


def test_other_modes_become_colour():
    prepared = Preprocess(resize=8, crop=8)(Image.fromarray(picture(8, 8)[..., 0]))
    assert prepared.shape == (1, 8, 8, 3)


def test_published_crops_are_seven_eighths_of_the_resize():
    sizes = [WEIGHTS[f"efficientnet_lite{n}"][0].preprocess for n in range(3)]
    assert [(p.resize, p.crop) for p in sizes] == [(256, 224), (274, 240), (297, 260)]
    assert {p.mean + p.std for p in sizes} == {(0.5,) * 6}


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 of shape"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\), expected"),
        (np.zeros((4, 4), np.uint8), "expected a PIL image or uint8"),
        ([np.zeros((4, 4), np.uint8)], "np.stack"),
        ([], "Got no pictures, expected at least one"),
    ],
)
def test_other_input_is_refused(pictures, message):
    with pytest.raises(ImageError, match=message):
        Preprocess()(pictures)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 0}, "resize=0, expected at least 1"),
        ({"crop": -1}, "crop=-1, expected at least 1"),
        ({"interpolation": "nearest"}, "interpolation='nearest', expected bilinear or bicubic"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        Preprocess(**settings)
