"""The order in which known architectures execute their layers.

A parameter tree does not keep it: JAX sorts the keys of a dict. For the architectures of this
project it can be told from the names alone, by ranking the siblings of every module; for any other
tree the natural order of the paths has to do, or `trace_layers`, which is exact.
"""

import functools
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tlv_jax.paths import natural_key, path_components

__all__ = ["EXECUTION_ORDERS", "SiblingOrder", "sort_modules"]


class SiblingOrder(NamedTuple):
    """The module names of one family, in an order that is right among siblings everywhere.

    Attributes:
      marker: a name that every tree of the family has.
      names: all names of the family's modules, entries of lists left out. A name that is not here
        itself may be one with a number behind it, as `denselayer` stands for `denselayer12`.
    """

    marker: str
    names: tuple[str, ...]


EXECUTION_ORDERS: Mapping[str, SiblingOrder] = MappingProxyType(
    {
        "squeezenet": SiblingOrder(
            "squeeze", ("features", "squeeze", "expand1x1", "expand3x3", "classifier")
        ),
        "mobilenet_v2": SiblingOrder("conv", ("features", "conv", "classifier")),
        "vit": SiblingOrder(
            "conv_proj",
            (
                "conv_proj",
                "encoder",
                "layers",
                "encoder_layer_",
                "ln_1",
                "self_attention",
                "in_proj",
                "out_proj",
                "ln_2",
                "mlp",
                "ln",
                "heads",
                "head",
            ),
        ),
        "swin": SiblingOrder(
            "reduction",
            (
                "features",
                "norm1",
                "attn",
                "qkv",
                "proj",
                "norm2",
                "mlp",
                "norm",
                "reduction",
                "head",
            ),
        ),
        "swin_v2": SiblingOrder(
            "cpb_mlp",
            (
                "features",
                "attn",
                "cpb_mlp",
                "qkv",
                "proj",
                "norm1",
                "mlp",
                "norm2",
                "reduction",
                "norm",
                "head",
            ),
        ),
        "maxvit": SiblingOrder(
            "MBconv",
            (
                "stem",
                "blocks",
                "MBconv",
                "proj",
                "layers",
                "pre_norm",
                "conv_a",
                "conv_b",
                "squeeze_excitation",
                "fc1",
                "fc2",
                "conv_c",
                "window_attention",
                "grid_attention",
                "attn_layer",
                "to_qkv",
                "merge",
                "mlp_layer",
                "classifier",
            ),
        ),
        "googlenet": SiblingOrder(
            "inception3a",
            (
                "conv1",
                "conv2",
                "conv3",
                "inception3a",
                "inception3b",
                "inception4a",
                "inception4b",
                "inception4c",
                "inception4d",
                "inception4e",
                "inception5a",
                "inception5b",
                "aux1",
                "aux2",
                "branch1",
                "branch2",
                "branch3",
                "branch4",
                "conv",
                "bn",
                "fc1",
                "fc2",
                "fc",
            ),
        ),
        "inception_v3": SiblingOrder(
            "Mixed_5b",
            (
                "Conv2d_1a_3x3",
                "Conv2d_2a_3x3",
                "Conv2d_2b_3x3",
                "Conv2d_3b_1x1",
                "Conv2d_4a_3x3",
                "Mixed_5b",
                "Mixed_5c",
                "Mixed_5d",
                "Mixed_6a",
                "Mixed_6b",
                "Mixed_6c",
                "Mixed_6d",
                "Mixed_6e",
                "Mixed_7a",
                "Mixed_7b",
                "Mixed_7c",
                "AuxLogits",
                "branch1x1",
                "branch3x3",
                "branch3x3_",
                "branch3x3_2a",
                "branch3x3_2b",
                "branch5x5_",
                "branch3x3dbl_",
                "branch3x3dbl_3a",
                "branch3x3dbl_3b",
                "branch7x7_",
                "branch7x7dbl_",
                "branch7x7x3_",
                "branch_pool",
                "conv0",
                "conv1",
                "conv",
                "bn",
                "fc",
            ),
        ),
        "efficientnet, mobilenet_v3 and convnext": SiblingOrder(
            "block", ("features", "block", "fc1", "fc2", "classifier")
        ),
        "densenet": SiblingOrder(
            "conv0",
            (
                "features",
                "conv0",
                "norm0",
                "denseblock1",
                "transition1",
                "denseblock2",
                "transition2",
                "denseblock3",
                "transition3",
                "denseblock4",
                "norm5",
                "denselayer",
                "norm1",
                "conv1",
                "norm2",
                "conv2",
                "norm",
                "conv",
                "classifier",
            ),
        ),
        "mnasnet": SiblingOrder("layers", ("layers", "classifier")),
        "regnet": SiblingOrder(
            "trunk_output",
            ("stem", "trunk_output", "block", "f", "proj", "a", "b", "se", "c", "fc1", "fc2", "fc"),
        ),
        "shufflenet_v2": SiblingOrder(
            "stage2", ("conv1", "stage2", "stage3", "stage4", "branch1", "branch2", "conv5", "fc")
        ),
        "vgg and alexnet": SiblingOrder("features", ("features", "classifier")),
        "resnet": SiblingOrder(
            "layer1",
            (
                "conv1",
                "bn1",
                "layer1",
                "layer2",
                "layer3",
                "layer4",
                "conv2",
                "bn2",
                "conv3",
                "bn3",
                "downsample",
                "fc",
            ),
        ),
        "efficientnet_lite": SiblingOrder(
            "_blocks",
            (
                "_conv_stem",
                "_expand_conv",
                "_bn0",
                "_blocks",
                "_depthwise_conv",
                "_conv_head",
                "_bn1",
                "_project_conv",
                "_bn2",
                "_fc",
            ),
        ),
    }
)


def sort_modules(modules: Collection[str]) -> tuple[list[str], str]:
    """Sorts module paths by execution where the architecture is known, else naturally.

    Args:
      modules: paths such as `layer1.0/conv1`, without a leading collection's name.

    Returns:
      The sorted paths, and in words how the order was found.
    """
    words = {word for module in modules for word in path_components(module) if not word.isdigit()}
    for family, order in EXECUTION_ORDERS.items():
        if order.marker in words and all(_known(word, order.names) for word in words):
            ordered = sorted(modules, key=functools.partial(_rank, names=order.names))
            return ordered, f"execution order of the {family} family"
    return (
        sorted(modules, key=natural_key),
        "natural order of the paths, not known to be that of execution (trace_layers is exact)",
    )


def _rank(module: str, names: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Sorts among siblings, which are all numbers or all names."""
    return [_rank_of_word(word, names) for word in path_components(module)]


def _rank_of_word(word: str, names: tuple[str, ...]) -> tuple[int, ...]:
    if word.isdigit():
        return (int(word),)
    if word in names:
        return (names.index(word),)
    name, numbers = _split_number(word)
    return (names.index(name), *numbers)


def _known(word: str, names: tuple[str, ...]) -> bool:
    return word in names or _split_number(word)[0] in names


def _split_number(word: str) -> tuple[str, tuple[int, ...]]:
    """`block3-11 -> block, (3, 11)`."""
    name = word.rstrip("0123456789-")
    return name, tuple(int(number) for number in re.findall(r"\d+", word[len(name) :]))
