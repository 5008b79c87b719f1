"""State dicts under the keys of timm, Hugging Face transformers and authors."""

import warnings

import foreign
import jax
import numpy as np
import pytest
import torch
from helpers import import_torchvision, relative_error
from parity import random_images

import importers
from importers.__main__ import main
from importers.conversion import arrays_of, match_keys
from importers.entries import shapes_of
from importers.families import FAMILIES
from importers.foreign_keys import explain_foreign, naming_of

torchvision = import_torchvision()
RECORDED = foreign.recorded()
READ = [name for name in RECORDED if not name.startswith("unread")]
UNREAD = [name for name in RECORDED if name.startswith("unread")]
QUICK = {
    *("timm mobilenet_v2", "timm regnet_y_400mf", "authors convnext_tiny"),
    *("transformers resnet18", "transformers vit_b_16"),
}
# Whose shapes take seconds to find.
DEEP = ("densenet121", "googlenet", "inception_v3", "maxvit_t")


def zeros(shapes):
    """Views of one byte or two: keys and shapes without the memory."""
    return {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes.items()}


def keys_of_torchvision(architecture, side):
    options = {"image_size": side} if architecture.startswith("vit") else {}
    # A RegNet computes with its arrays when it is made.
    with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
        make = torchvision.models.get_model
        network = make(architecture, weights=None, num_classes=foreign.CLASSES, **options)
    constants = ("num_batches_tracked", "relative_position_index")
    return {
        key: tuple(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not key.endswith(constants)
    }


@pytest.mark.parametrize(
    ("network", "place"),
    [
        (name, place)
        for name in READ
        for place in ("shapes", "in_memory")  # in files, and in modules if those have others
        if place in RECORDED[name]
    ],
)
def test_renaming_gives_torchvision_s_keys_and_shapes_each_once(network, place):
    record = RECORDED[network]
    given, architecture = zeros(record[place]), record["architecture"]
    with pytest.warns(importers.ForeignKeysWarning):
        arrays = arrays_of(architecture, given)
    expected = keys_of_torchvision(architecture, record["side"])
    assert {key: array.shape for key, array in arrays.items()} == expected
    assert sum(a.size for a in arrays.values()) == sum(a.size for a in given.values())


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in READ]
)
def test_logits_are_those_of_the_other_project_s_network(network):
    record = RECORDED[network]
    weights = foreign.weights_of(record["shapes"])
    with pytest.warns(importers.ForeignKeysWarning):
        loaded = importers.load(record["architecture"], weights)
    images = random_images(2, record["side"], record["side"], 3)
    actual, expected = jax.jit(loaded.model.apply)(loaded.variables, images), record["logits"]
    assert relative_error(actual, expected) < 1e-5
    # Most of a logit is the same for both images.
    assert relative_error(np.diff(actual, axis=0), np.diff(expected, axis=0)) < 2e-4


def load_quietly(name, source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", importers.ForeignKeysWarning)
        return importers.load(name, source, **options)


@pytest.fixture(scope="module")
def regnet():
    """timm's RegNet with weights that follow from their keys."""
    return foreign.weights_of(RECORDED["timm regnet_y_400mf"]["shapes"])


@pytest.fixture(scope="module")
def vit():
    """timm's ViT-B/16 for 64 pixels a side, all zero but for two parts."""
    weights = zeros(RECORDED["timm vit_b_16"]["shapes"])
    for key in ("pos_embed", "blocks.3.attn.qkv.bias"):
        weights |= foreign.weights_of({key: weights[key].shape})
    return weights


def test_a_file_is_read_with_one_warning_that_says_whose_keys_it_has(regnet, tmp_path):
    tensors = {f"module.{key}": torch.from_numpy(array) for key, array in regnet.items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "regnet.pth")
    with pytest.warns(importers.ForeignKeysWarning) as caught:
        loaded = importers.load("regnet_y_400mf", tmp_path / "regnet.pth")
    (warning,) = caught
    assert str(warning.message).startswith("The keys are timm's: they are renamed to torchvision's")
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__
    np.testing.assert_array_equal(loaded.params["fc"]["bias"], regnet["head.fc.bias"])


def test_what_the_keys_do_not_tell_is_said():
    shapes = RECORDED["transformers resnet50"]["shapes"]
    with pytest.warns(importers.ForeignKeysWarning, match="downsample_in_bottleneck=False"):
        importers.convert("resnet50", zeros(shapes))


@pytest.mark.filterwarnings("default::importers.ForeignKeysWarning")
def test_the_command_converts_such_a_file(regnet, tmp_path, capsys):
    torch.save({key: torch.from_numpy(a) for key, a in regnet.items()}, tmp_path / "timm.pth")
    given, out = tmp_path / "timm.pth", tmp_path / "mine.safetensors"
    assert main(["convert", str(given), "--arch", "regnet_y_400mf", "--out", str(out)]) == 0
    assert "warning: The keys are timm's" in capsys.readouterr().err
    loaded = importers.load("regnet_y_400mf", out)  # without a warning
    np.testing.assert_array_equal(loaded.params["fc"]["bias"], regnet["head.fc.bias"])


def test_weights_of_self_supervision_have_no_classifier(vit):
    backbone = {f"backbone.{key}": a for key, a in vit.items() if not key.startswith("head.")}
    with pytest.warns(importers.ForeignKeysWarning), pytest.warns(importers.FreshHeadWarning):
        loaded = importers.load("vit_b_16", backbone, num_classes=3)
    assert loaded.params["heads.head"]["bias"].shape == (3,)
    bias = loaded.params["encoder"]["layers.encoder_layer_3"]["self_attention"]["in_proj"]["bias"]
    np.testing.assert_array_equal(bias, vit["blocks.3.attn.qkv.bias"])


def test_positions_of_other_projects_are_resized_too(vit):
    loaded = load_quietly("vit_b_16", vit, image_size=96)
    assert loaded.params["encoder"]["pos_embedding"].shape == (1, 37, 768)


def test_what_a_classifier_does_not_use_is_left_out():
    shapes = RECORDED["transformers vit_b_16"]["shapes"]
    bare = {key.removeprefix("vit."): shape for key, shape in shapes.items()}
    with pytest.warns(importers.ForeignKeysWarning):
        arrays = arrays_of("vit_b_16", zeros(bare | {"pooler.dense.weight": (768, 768)}))
    assert arrays.keys() == keys_of_torchvision("vit_b_16", 64).keys()


def test_constants_of_swin_s_authors_are_left_out():
    shapes = RECORDED["authors swin_t"]["shapes"]
    block = "layers.0.blocks.1.attn"
    constants = {f"{block}.relative_position_index": (49, 49), f"{block}_mask": (64, 49, 49)}
    with pytest.warns(importers.ForeignKeysWarning, match="Swin's authors"):
        arrays = arrays_of("swin_t", zeros(shapes | constants))
    assert match_keys("swin_t", arrays).problems == ()


def first_line(name, state_dict):
    with pytest.raises(importers.StateDictError) as error:
        importers.load(name, state_dict)
    return str(error.value).splitlines()[0]


def test_keys_under_another_architecture_of_the_family_say_which(regnet):
    line = first_line("regnet_y_800mf", regnet)
    assert line.startswith("The keys look like timm's, for another network: do not remove any.")
    assert "fit 'regnet_y_400mf' best" in line


def test_keys_under_another_family_say_which(vit):
    line = first_line("resnet18", vit)
    assert "its keys look like timm's, and their shapes fit 'vit_b_16' best" in line
    assert "Load it under that name" in line


@pytest.mark.parametrize(
    "extra",
    [
        {"norm_pre.weight": (768,)},  # of CLIP
        {"blocks.0.ls1.gamma": (768,)},  # of DINOv2 and DeiT III
        {"dist_token": (1, 1, 768)},  # of distilled DeiT
        {"reg_token": (1, 4, 768)},
    ],
)
def test_vision_transformers_that_compute_something_else_are_refused(vit, extra):
    with pytest.raises(
        importers.StateDictError, match=r"timm's, .*do not remove any.*\n.*no such key"
    ):
        importers.load("vit_b_16", vit | zeros(extra))


def test_an_attention_without_one_of_its_projections_is_refused():
    weights = zeros(RECORDED["transformers vit_b_16"]["shapes"])
    del weights["vit.encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(importers.StateDictError, match=r"in_proj_bias: .*\(1536,\), expected"):
        importers.load("vit_b_16", weights)


@pytest.mark.parametrize("network", UNREAD)
def test_keys_that_are_not_read_are_named(network):
    record = RECORDED[network]
    project = "timm's" if "timm" in network else "those of Hugging Face transformers"
    line = first_line(record["architecture"], zeros(record["shapes"]))
    assert project in line
    assert project in first_line("alexnet", zeros(record["shapes"]))


@pytest.mark.parametrize("architecture", ["efficientnet_b0", "mobilenet_v3_large"])
def test_shapes_that_fit_are_told_from_those_that_do_not(architecture):
    arrays = zeros(RECORDED[f"unread timm {architecture}"]["shapes"])
    assert "same keys. These are not read; their shapes fit. " in first_line(architecture, arrays)
    assert "their shapes do not fit either. " in first_line("alexnet", arrays)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in DEEP else ())
        for name in {id(FAMILIES[name]): name for name in reversed(FAMILIES)}.values()
    ],
)
def test_torchvision_s_own_keys_are_nobody_else_s(name):
    arrays = zeros(shapes_of(name))
    assert naming_of(FAMILIES[name].foreign, arrays) is None
    assert explain_foreign("alexnet", arrays) == ""
