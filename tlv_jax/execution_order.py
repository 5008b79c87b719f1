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

from tlv_jax.paths import natural_key

__all__ = ["EXECUTION_ORDERS", "SiblingOrder", "sort_modules"]


class SiblingOrder(NamedTuple):
    """The module names of one family, in an order that is right among siblings everywhere.

    Attributes:
      marker: a name that every tree of the family has.
      names: all names of the family's modules, numbered list entries left out.
    """

    marker: str
    names: tuple[str, ...]


EXECUTION_ORDERS: Mapping[str, SiblingOrder] = MappingProxyType(
    {
        "vgg": SiblingOrder("features", ("features", "classifier")),
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
    words = {word for module in modules for word in _components(module) if not word.isdigit()}
    for family, order in EXECUTION_ORDERS.items():
        if order.marker in words and words <= set(order.names):
            ordered = sorted(modules, key=functools.partial(_rank, names=order.names))
            return ordered, f"execution order of the {family} family"
    return (
        sorted(modules, key=natural_key),
        "natural order of the paths, not known to be that of execution (trace_layers is exact)",
    )


def _rank(module: str, names: tuple[str, ...]) -> list[int]:
    """Sorts among siblings, which are all numbers or all names."""
    return [int(word) if word.isdigit() else names.index(word) for word in _components(module)]


def _components(module: str) -> list[str]:
    return [word for word in re.split(r"[/.]", module) if word]
