"""Standardizations: layers flat, in blocks of the modules, and in blocks of the graph."""

import pytest
import trees
import zoo

from tlv_jax import Layer, OptionError, layers
from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.layers.trees import find_layers


def found(name):
    return find_layers(trees.shapes(name)["params"], name="t")[0]


def names_of(blocks):
    return [
        block.path.removeprefix("params/") if isinstance(block, Layer) else names_of(block)
        for block in blocks
    ]


@pytest.mark.parametrize(("kinds", "count"), [(("conv",), 20), (("dense", "norm"), 21), ((), 0)])
def test_flat_standardization_keeps_the_kinds_asked_for(kinds, count):
    assert len(layers.standardize_flat(found("resnet18"), kinds)) == count


def test_blocks_follow_the_modules():
    blocks = layers.standardize_blocks(found("resnet18"), ("conv", "dense", "norm"))
    names = names_of(blocks)
    assert names[:4] == [
        "conv1",
        "bn1",
        ["layer1.0/conv1", "layer1.0/bn1", "layer1.0/conv2", "layer1.0/bn2"],
        ["layer1.1/conv1", "layer1.1/bn1", "layer1.1/conv2", "layer1.1/bn2"],
    ]
    assert names[4][-1] == "layer2.0/downsample.1"
    assert names[-1] == "fc"
    assert flatten_blocks(blocks) == found("resnet18")


def test_a_chain_of_layers_is_one_block():
    blocks = layers.standardize_blocks(found("vgg16"), ("conv", "dense"))
    assert [len(block) for block in blocks] == [13, 3]


def test_graph_blocks_lie_between_joins():
    blocks = layers.standardize_graph(zoo.network_of("resnet18").layers, ("conv", "dense"))
    names = names_of(blocks)
    assert names[:3] == [
        ["conv1", "layer1.0/conv1", "layer1.0/conv2"],
        ["layer1.1/conv1", "layer1.1/conv2"],
        ["layer2.0/conv1", "layer2.0/conv2", "layer2.0/downsample.0"],
    ]
    assert names[-1] == "fc"


def test_graph_blocks_need_traced_layers():
    with pytest.raises(OptionError, match=r"tlv_jax\.trace\(fn, params, images\)"):
        layers.standardize_graph(found("resnet18"), ("conv",))
