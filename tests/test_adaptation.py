import warnings

import jax
import numpy as np
import pytest
from helpers import relative_error
from parity import random_images, random_network

import importers
from importers.adaptation import adapt_stem
from tlv_jax.errors import OptionError


@pytest.fixture(scope="module")
def network():
    return random_network("resnet18")


def test_another_number_of_classes_reinitializes_the_last_layer_with_a_warning(network):
    plain = importers.load("resnet18", network)
    with pytest.warns(importers.FreshHeadWarning, match=r"10 classes, not 7: .*fc/kernel"):
        loaded = importers.load("resnet18", network, num_classes=7)
    assert loaded.model.num_classes == 7
    assert loaded.params["fc"]["kernel"].shape == (512, 7)
    assert 0 < np.abs(loaded.params["fc"]["kernel"]).max() <= 512**-0.5
    rest = [{k: v for k, v in x.params.items() if k != "fc"} for x in (plain, loaded)]
    jax.tree.map(np.testing.assert_array_equal, *rest)


@pytest.mark.parametrize("sizes", [{}, {"num_classes": 10}, {"in_channels": 3, "num_classes": 10}])
def test_the_checkpoint_s_own_sizes_change_nothing(network, sizes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = importers.load("resnet18", network, **sizes)
    np.testing.assert_array_equal(loaded.params["fc"]["bias"], network.fc.bias.detach())


def test_a_grey_image_gives_what_its_colour_copy_gives(network):
    colour = importers.load("resnet18", network)
    grey = importers.load("resnet18", network, in_channels=1)
    images = random_images(2, 32, 32, 1)
    expected = jax.jit(colour.model.apply)(colour.variables, np.repeat(images, 3, axis=-1))
    actual = jax.jit(grey.model.apply)(grey.variables, images)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_more_channels_repeat_and_rescale(channels):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype(np.float32)
    adapted = adapt_stem(kernel, channels)
    assert adapted.shape == (3, 3, channels, 5)
    for channel in range(channels):
        expected = kernel[:, :, channel % 3] * (3 / channels)
        np.testing.assert_allclose(adapted[:, :, channel], expected, rtol=1e-6)


@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_numbers_below_one_are_refused(network, option):
    with pytest.raises(OptionError, match=f"{option}=0"):
        importers.load("resnet18", network, **{option: 0})
