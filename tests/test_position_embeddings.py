"""Vision transformers and MaxViTs on images of another size than the checkpoint's."""

import jax
import numpy as np
import pytest
import torch
from helpers import import_torchvision, relative_error
from parity import random_images, to_torch

import importers
from importers.position_embeddings import at_image_size, preprocess_at, resize_positions
from tlv_jax import models
from tlv_jax.errors import OptionError

torchvision = import_torchvision()
interpolate = torchvision.models.vision_transformer.interpolate_embeddings


@pytest.fixture(scope="module")
def network():
    """A ViT-B/32 for 64 pixels a side, which are 2 x 2 patches."""
    torch.manual_seed(0)
    network = torchvision.models.vit_b_32(image_size=64, num_classes=5)
    torch.nn.init.normal_(network.heads.head.weight)
    return network


@pytest.mark.parametrize(
    ("given", "wanted"), [(7, 12), (14, 24), (12, 7), (7, 1), (1, 4), (2, 5), (7, 7)]
)
def test_positions_are_resized_as_torchvision_does(given, wanted):
    generator = np.random.default_rng(0)
    positions = generator.normal(size=(1, 1 + given * given, 6)).astype(np.float32)
    state = {"encoder.pos_embedding": torch.from_numpy(positions)}
    expected = interpolate(wanted * 16, 16, state)["encoder.pos_embedding"]
    actual = resize_positions(positions, wanted)
    assert actual.dtype == np.float32
    assert relative_error(actual, expected) < 1e-6


def test_a_checkpoint_is_loaded_for_images_of_another_size(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    loaded = importers.load("vit_b_32", tmp_path / "vit.pth", image_size=96)
    assert loaded.model.image_size == loaded.preprocess.crop == 96
    larger = torchvision.models.vit_b_32(image_size=96, num_classes=5)
    larger.load_state_dict(interpolate(96, 32, network.state_dict()))
    images = random_images(2, 96, 96, 3)
    with torch.no_grad():
        expected = larger.eval()(to_torch(images)).numpy()
    actual = jax.jit(loaded.model.apply)(loaded.variables, images)
    assert relative_error(actual, expected) < 1e-5


def test_a_checkpoint_keeps_its_own_size_and_pictures_are_prepared_for_it(network):
    loaded = importers.load("vit_b_32", network)
    assert loaded.model.image_size == 64
    own = network.encoder.pos_embedding.detach().numpy()
    np.testing.assert_array_equal(loaded.params["encoder"]["pos_embedding"], own)
    pictures = loaded.preprocess(np.zeros((80, 100, 3), np.uint8))
    logits = jax.eval_shape(loaded.model.apply, loaded.variables, pictures)
    assert logits.shape == (1, 5)


def test_pictures_are_resized_in_proportion():
    published = importers.Preprocess(resize=256, crop=224)
    assert preprocess_at(published, 448) == importers.Preprocess(resize=512, crop=448)
    assert preprocess_at(published, 224) == published


def test_a_maxvit_takes_multiples_of_its_size():
    model, params = at_image_size(models.create("maxvit_t"), {}, 448)
    assert (model.image_size, params) == (448, {})
    variables = models.abstract_variables(model)
    own = models.abstract_variables(models.create("maxvit_t"))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, variables, own))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet18", 256, "image_size=256 for 'resnet18', which takes images of any size"),
        ("swin_t", 256, "which takes images of any size"),
        (
            "vit_b_32",
            250,
            "image_size=250 for 'vit_b_32', expected a multiple of 32: .*example 224",
        ),
        ("vit_h_14", 0, "expected a multiple of 14"),
        ("maxvit_t", 256, "expected a multiple of 224"),
        ("vit_b_32", (256, 192), "the pixels a side of square images"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(name, size, message):
    with pytest.raises(OptionError, match=message):
        importers.load(name, {}, image_size=size)


def test_a_size_that_patches_do_not_divide_is_refused_by_the_network():
    model = models.create("vit_b_32").clone(image_size=80)
    with pytest.raises(models.ImageError, match="a multiple of 32"):
        models.abstract_variables(model)
