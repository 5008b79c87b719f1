"""Checkpoints without a classifier, or with another one: it is re-initialized with a warning."""

import numpy as np
import pytest
import torch
from parity import random_network

import importers
from importers.adaptation import with_classifier
from importers.conversion import match_keys
from importers.entries import shapes_of
from importers.families import FAMILIES


@pytest.fixture(scope="module")
def state_dict():
    return random_network("resnet18", num_classes=7).state_dict()


def without(start, state_dict):
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith(start)}


def stand_ins(name, changes):
    """Weights of a large network that take no memory, with some of other shapes or of none."""
    shapes = {**shapes_of(name), **changes}
    arrays = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items() if shape}
    return {**arrays, **FAMILIES[name].buffers(name)}


@pytest.mark.parametrize("num_classes", [None, 5])
def test_a_checkpoint_without_a_classifier_gets_a_new_one(state_dict, num_classes):
    headless = without("fc.", state_dict)
    with pytest.warns(
        importers.FreshHeadWarning, match=r"classifier that fits: fc\.bias, fc\.w"
    ) as warned:
        pretrained = importers.load("resnet18", headless, num_classes=num_classes)
    assert [warning.filename for warning in warned] == [__file__]
    assert "Left out" not in str(warned[0].message)
    assert pretrained.categories == ()
    assert pretrained.model.num_classes == (num_classes or 1000)
    kernel = pretrained.params["fc"]["kernel"]
    assert kernel.shape == (512, num_classes or 1000)
    assert 0 < np.abs(kernel).max() <= 512**-0.5
    np.testing.assert_array_equal(pretrained.params["bn1"]["bias"], headless["bn1.bias"])


OTHERS = {
    "sequential": {"fc.1.weight": (7, 512), "fc.1.bias": (7,)},
    "two layers": {"fc.0.weight": (64, 512), "fc.3.weight": (7, 64)},
    "head": {"head.weight": (7, 512), "head.bias": (7,)},
    "classifier": {"classifier.weight": (7, 512)},
    "projection": {"projector.0.weight": (64, 512), "projector.1.running_mean": (64,)},
    "wider": {"fc.weight": (7, 1024), "fc.bias": (7,)},
    "as a convolution": {"fc.weight": (7, 512, 1, 1), "fc.bias": (7,)},
    "without a bias": {"fc.weight": (7, 512)},
}


@pytest.mark.parametrize(
    ("case", "num_classes"), [*((case, None) for case in OTHERS), ("head", 5), ("wider", 5)]
)
def test_another_classifier_is_replaced_and_named(state_dict, case, num_classes):
    head = {key: torch.zeros(shape) for key, shape in OTHERS[case].items()}
    with pytest.warns(importers.FreshHeadWarning) as warned:
        pretrained = importers.load(
            "resnet18", {**without("fc.", state_dict), **head}, num_classes=num_classes
        )
    assert f"Left out: {', '.join(sorted(head))}." in str(warned[0].message)
    # Where a last layer is there, its number of classes is still that of the checkpoint.
    classes = num_classes or (7 if "fc.weight" in head else 1000)
    assert pretrained.params["fc"]["kernel"].shape == (512, classes)
    assert pretrained.params["fc"]["kernel"].std() > 0
    np.testing.assert_array_equal(
        pretrained.params["layer4.1"]["bn2"]["bias"], state_dict["layer4.1.bn2.bias"]
    )


def test_a_classifier_of_another_prefix_is_replaced_too(state_dict):
    checkpoint = {f"module.encoder.{k}": t for k, t in without("fc.", state_dict).items()}
    checkpoint["module.encoder.fc.0.weight"] = torch.zeros(64, 512)
    with pytest.warns(importers.FreshHeadWarning, match=r"Left out: fc\.0\.weight\."):
        importers.load("resnet18", checkpoint)


def test_only_classifiers_are_replaced(state_dict):
    headless = without("fc.", state_dict)
    with pytest.raises(importers.StateDictError, match=r"bn1\.bias: found nothing"):
        importers.load("resnet18", without("bn1.bias", headless))
    with pytest.raises(importers.StateDictError, match=r"bn1\.bias: found float32 of shape \(3,"):
        importers.load("resnet18", {**headless, "bn1.bias": torch.zeros(3)})


@pytest.mark.parametrize("stray", ["layer1.2.conv1.weight", "layer1.0.se.weight", "conv1.bias"])
def test_a_network_with_more_layers_is_refused(state_dict, stray):
    larger = {**without("fc.", state_dict), stray: torch.zeros(3)}
    with pytest.raises(importers.StateDictError, match=rf"{stray}: found float32"):
        importers.load("resnet18", larger)


def test_a_resnet34_is_no_resnet18_with_another_classifier():
    deeper = without("fc.", random_network("resnet34").state_dict())
    with pytest.raises(importers.StateDictError, match="fit 'resnet34' best"):
        importers.load("resnet18", deeper)


def test_keys_beside_a_whole_network_are_refused(state_dict):
    more = {**state_dict, "head.weight": torch.zeros(7, 512)}
    with pytest.raises(importers.StateDictError, match=r"other keys beside it\. Remove them"):
        importers.load("resnet18", more)


CLASSIFIERS = {
    "vgg, other last layer": (
        "vgg11",
        {
            "classifier.6.weight": (7, 512), "classifier.6.bias": (7,),
            "classifier.3.weight": (512, 4096), "classifier.3.bias": (512,),
        },
        ["classifier.3.bias", "classifier.3.weight", "classifier.6.bias", "classifier.6.weight"],
    ),
    "alexnet, one layer": (
        "alexnet",
        {
            "classifier.weight": (7, 9216), "classifier.bias": (7,),
            **dict.fromkeys(f"classifier.{n}.{k}" for n in (1, 4, 6) for k in ("weight", "bias")),
        },
        [f"classifier.{n}.{kind}" for n in (1, 4, 6) for kind in ("bias", "weight")],
    ),
    "vit": (
        "vit_b_32",
        {"heads.head.weight": None, "heads.head.bias": None, "heads.weight": (7, 768)},
        ["heads.head.bias", "heads.head.weight"],
    ),
    "squeezenet": (
        "squeezenet1_1",
        {"classifier.1.weight": None, "classifier.1.bias": None},
        ["classifier.1.bias", "classifier.1.weight"],
    ),
    "swin": ("swin_t", {"head.weight": None, "head.bias": None}, ["head.bias", "head.weight"]),
    "convnext": (
        "convnext_tiny",
        dict.fromkeys(f"classifier.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")),
        [f"classifier.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_the_classifiers_of_every_kind(case):
    name, changes, fresh = CLASSIFIERS[case]
    given = stand_ins(name, changes)
    with pytest.warns(importers.FreshHeadWarning):
        arrays, keys = with_classifier(name, given, None)
    assert sorted(keys) == fresh
    assert match_keys(name, arrays).problems == ()
    kept = arrays.keys() - keys
    assert all(arrays[key] is given[key] for key in kept)
    assert any(key.startswith(("features.", "conv_proj.")) for key in kept)


@pytest.mark.parametrize(
    ("name", "stray", "num_classes"),
    [
        ("googlenet", "aux2.fc2.", 5),
        ("googlenet", "aux1.", None),
        ("inception_v3", "AuxLogits.fc.", None),
    ],
)
def test_auxiliary_heads_are_replaced_too(name, stray, num_classes):
    state_dict = random_network(name, num_classes=7).state_dict()
    with pytest.warns(importers.FreshHeadWarning) as warned:
        pretrained = importers.load(name, without(stray, state_dict), num_classes=num_classes)
    assert stray in str(warned[0].message)
    assert pretrained.model.aux_logits
    assert pretrained.params["fc"]["bias"].shape == (num_classes or 7,)
    expected = importers.convert(name, state_dict)[1]
    np.testing.assert_equal(pretrained.batch_stats.keys(), expected.keys())


def test_auxiliary_heads_do_not_hide_a_missing_classifier():
    state_dict = without("fc.", random_network("googlenet", num_classes=7).state_dict())
    with pytest.warns(importers.FreshHeadWarning, match=r"aux1\.fc2\.bias.* fc\.bias"):
        pretrained = importers.load("googlenet", state_dict, num_classes=5)
    assert pretrained.params["aux1"]["fc2"]["bias"].shape == (5,)


def test_a_strict_conversion_says_what_to_do(state_dict):
    for head in ({}, {"fc.1.weight": torch.zeros(7, 512)}, {"head.weight": torch.zeros(7, 512)}):
        with pytest.raises(importers.StateDictError) as error:
            importers.convert("resnet18", {**without("fc.", state_dict), **head})
        first_line = str(error.value).partition("\n")[0]
        assert "its classifier is missing or another one. importers.load repl" in first_line
