"""The first line of an error says what most likely happened, and only where that is so."""

import numpy as np
import pytest
import torch
from parity import random_network, torchvision
from torch.nn.utils import parametrizations, prune

import importers
from importers.entries import shapes_of
from tlv_jax import models


def first_line_of(name, state_dict, use=importers.convert):
    with pytest.raises(importers.StateDictError) as error:
        use(name, state_dict)
    return str(error.value).partition("\n")[0]


@pytest.fixture
def network():
    return random_network("resnet18", num_classes=7)


def convolutions(network):
    return [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]


def changed(network, change):
    """The state dict of a network each of whose convolutions is changed."""
    for module in convolutions(network):
        change(module)
    return network.state_dict()


def pruned(network):
    return changed(network, lambda module: prune.identity(module, "weight"))


def one_pruned(network):
    prune.identity(network.conv1, "weight")
    return network.state_dict()


def weight_normed(network):
    return changed(network, parametrizations.weight_norm)


def weight_normed_as_before(network):
    state_dict = network.state_dict()
    for key in [key for key in state_dict if "conv" in key]:
        kernel = state_dict.pop(key)
        state_dict[f"{key}_g"], state_dict[f"{key}_v"] = kernel.norm(), kernel
    return state_dict


def spectrally_normed(network):
    return changed(network, torch.nn.utils.spectral_norm)


def with_lora(network):
    state_dict = network.state_dict()
    for key in [key for key in state_dict if "conv" in key]:
        module = f"base_model.model.{key.removesuffix('.weight')}"
        state_dict[f"{module}.base_layer.weight"] = state_dict.pop(key)
        state_dict[f"{module}.lora_A.default.weight"] = torch.zeros(8, 3, 3, 3)
        state_dict[f"{module}.lora_B.default.weight"] = torch.zeros(8, 8, 1, 1)
    return state_dict


def quantized(network):
    state_dict = network.state_dict()
    for key in [key for key in state_dict if "conv" in key]:
        state_dict[f"{key.removesuffix('weight')}scale"] = torch.tensor(0.1)
        state_dict[f"{key.removesuffix('weight')}zero_point"] = torch.tensor(0)
        state_dict[key] = state_dict[key].to(torch.int8)
    return state_dict


def folded(network):
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval
    network.eval()
    for block in [m for m in network.modules() if hasattr(m, "bn1")]:
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            if hasattr(block, conv):
                setattr(block, conv, fused(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, torch.nn.Identity())
        if getattr(block, "downsample", None) is not None:
            block.downsample = torch.nn.Sequential(fused(*block.downsample))
    return network.state_dict()


def optimizer(network):
    return torch.optim.AdamW(network.parameters()).state_dict()


def optimizer_that_has_stepped(network):
    training = torch.optim.SGD(network.parameters(), momentum=0.9)
    sum(parameter.sum() for parameter in network.parameters()).backward()
    training.step()
    return training.state_dict()


def flax_tree(network):
    params, batch_stats = importers.convert("resnet18", network.state_dict())
    return {"params": params, "batch_stats": batch_stats}


def residual(layers, **options):
    """A ResNet of other depth or width than any published one."""
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, layers, **options).state_dict()


def narrow(network):
    return {
        key: tensor[tuple(slice(max(1, n // 2)) for n in tensor.shape)]
        for key, tensor in network.state_dict().items()
    }


CAUSES = {
    "pruned": (pruned, "it is pruned, with a mask beside each kernel"),
    "one kernel pruned": (one_pruned, "it is pruned, with a mask beside each kernel"),
    "weight norm": (weight_normed, "its kernels are stored in parts, as weight norm"),
    "old weight norm": (weight_normed_as_before, "its kernels are stored in parts, as weight norm"),
    "spectral norm": (spectrally_normed, "its kernels are stored in parts, as weight norm"),
    "lora": (with_lora, "it has LoRA or adapter layers. Merge them"),
    "quantized": (quantized, "it is quantized. Use the checkpoint from before"),
    "folded": (folded, "its batch norms are folded into the convolutions"),
    "optimizer": (optimizer, "it is that of an optimizer. Pass the network's own"),
    "stepped": (optimizer_that_has_stepped, "it is that of an optimizer. Pass the network's own"),
    "flax": (flax_tree, "its names are those of a Flax or JAX network"),
    "children": (
        lambda network: torch.nn.Sequential(*network.children()).state_dict(),
        "its modules have numbers in place of names",
    ),
    "shallower": (lambda _: residual([2, 2, 2, 1]), "it has fewer layers than 'resnet18': it lac"),
    "deeper": (lambda _: residual([2, 2, 2, 3]), "it has more layers than 'resnet18', such as '"),
    "narrower": (narrow, "it has the layers of 'resnet18' in other widths"),
    "nothing": (lambda _: {"epoch": 3}, "there are no tensors in it. Pass model.state_dict()"),
    "another": (
        lambda _: random_network("squeezenet1_1").state_dict(), "fit 'squeezenet1_1' best"
    ),
    "another in a checkpoint": (
        lambda _: {
            "model": {f"net.{k}": t for k, t in random_network("resnet34").state_dict().items()},
            "optimizer": {"state": {}, "param_groups": []},
        },
        "under the prefix 'model.net' does not fit 'resnet18': its keys fit 'resnet34' best",
    ),
    "another far from it": (
        lambda _: {"model": random_network("mobilenet_v2").state_dict(), "epoch": 3},
        "under the prefix 'model' does not fit 'resnet18': its keys fit 'mobilenet_v2' best",
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", [importers.convert, importers.load])
@pytest.mark.parametrize("case", CAUSES)
def test_the_cause_is_named(network, case, use):
    make, cause = CAUSES[case]
    assert cause in first_line_of("resnet18", make(network), use)


@pytest.mark.parametrize("make", [pruned, weight_normed, optimizer, optimizer_that_has_stepped])
def test_the_cause_is_named_for_files_too(tmp_path, network, make):
    state_dict = make(network)
    torch.save(state_dict, tmp_path / "c.pt")
    assert first_line_of("resnet18", tmp_path / "c.pt", importers.load) == first_line_of(
        "resnet18", state_dict
    )


def test_no_cause_is_named_where_there_is_no_telling(network):
    state_dict = network.state_dict()
    del state_dict["conv1.weight"]
    first_line = "The state dict does not fit 'resnet18': 1 problem."
    assert first_line_of("resnet18", state_dict) == first_line
    state_dict["conv1.weight"] = torch.zeros(64, 3, 5, 5)
    assert first_line_of("resnet18", state_dict) == first_line
    del state_dict["layer4.1.bn2.running_var"]
    assert "'resnet18': 2 problems." in first_line_of("resnet18", state_dict)


def test_a_detector_of_another_backbone_is_told_its_name():
    body = random_network("resnet34").state_dict()
    detector = {f"backbone.body.{key}": t for key, t in body.items() if key[:3] != "fc."}
    detector["rpn.head.conv.weight"] = torch.zeros(3)
    first_line = first_line_of("resnet18", detector)
    assert "under the prefix 'backbone.body'" in first_line
    assert "fit 'resnet34' best" in first_line
    assert "it is that of a larger network, such as a detector" in first_line_of(
        "resnet18", {"backbone.stem.weight": torch.zeros(3), "rpn.conv.weight": torch.zeros(3)}
    )


@pytest.mark.parametrize("name", ["vit_b_32", "vgg11", "squeezenet1_1", "shufflenet_v2_x1_0"])
def test_a_few_keys_of_a_network_are_not_said_to_be_of_another(name):
    keys = sorted(shapes_of(name).items())[::9]
    sparse = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys}
    first_line = first_line_of(name, sparse)
    for other in set(models.names()) - {name}:
        assert repr(other) not in first_line


def test_ten_problems_are_listed_and_the_others_counted(network):
    state_dict = network.state_dict()
    for key in [key for key in state_dict if key.startswith("layer4.1.")][:3]:
        del state_dict[key]
    with pytest.raises(importers.StateDictError) as error:
        importers.convert(
            "resnet18", {**state_dict, **{f"conv1.{n}": torch.zeros(3) for n in range(9)}}
        )
    first, *lines = str(error.value).splitlines()
    assert first.endswith(": 12 problems.")
    assert len(lines) == 11
    assert lines[0].startswith("  conv1.0: found float32 of shape (3,)")
    assert lines[-1] == "  and 2 others"


def test_values_that_are_not_finite_are_counted_alike(network):
    state_dict = {k: t * torch.nan for k, t in network.state_dict().items() if "num_" not in k}
    with pytest.raises(importers.StateDictError) as error:
        importers.convert("resnet18", state_dict)
    assert str(error.value).splitlines()[-1] == "  and 92 others"
    assert len(str(error.value).splitlines()) == 12


def test_names_cannot_steer_the_terminal(network):
    stray = {"conv1.\x1b[2J" + "x" * 10_000: torch.zeros(3)}
    with pytest.raises(importers.StateDictError) as error:
        importers.convert("resnet18", {**network.state_dict(), **stray})
    assert "conv1.?[2Jxxx" in str(error.value)
    assert len(str(error.value)) < 1_000
