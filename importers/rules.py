"""How the keys of a state dict and the leaves of a network correspond.

The networks have torch's names, so one rule serves every family: the leaf
`params/layer1.0/conv1/kernel` is torch's `layer1.0.conv1.weight`. A `Family` holds the exceptions.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from importers.layouts import CONV, DENSE, SAME, Layout, dense_after_flatten
from importers.naming import Naming

__all__ = ["IGNORED", "Family"]

IGNORED = re.compile(r"(.+\.)?(num_batches_tracked|n_averaged)")
"""Optional keys: counters that torch uses only for averages over time."""

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _no_options(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def _no_buffers(name: str) -> Mapping[str, np.ndarray]:
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular to the state dicts of one family.

    Attributes:
      stem: key of the first convolution's kernel; its second axis is the number of channels.
      head: key of the last layer's kernel; its first axis is the number of classes.
      flattened: from the key of each dense kernel that reads a flattened image to the number of
        that image's channels.
      renamed: pairs of a regular expression for keys that the one rule gets wrong, and torch's key.
      older: pairs of a regular expression for keys of older published files, and the current key.
      options: from a state dict to fields of the model other than the numbers of classes and
        channels.
      version: that torch stores with the state dict of this class and checks when loading.
      buffers: from the name of an architecture to the constants in its state dict.
      auxiliary: what the keys of auxiliary classifiers begin with, which only training uses.
      foreign: the names that other projects give to the same arrays.
    """

    stem: str
    head: str
    flattened: Mapping[str, int] = dataclasses.field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    options: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_options
    version: int | None = None
    buffers: Callable[[str], Mapping[str, np.ndarray]] = _no_buffers
    auxiliary: tuple[str, ...] = ()
    foreign: tuple[Naming, ...] = ()

    def key_of(self, leaf: str) -> str:
        """Torch's key of a leaf: `params/layer1.0/conv1/kernel -> layer1.0.conv1.weight`."""
        _, *modules, name = leaf.split("/")
        key = ".".join((*modules, _LEAF_NAMES.get(name, name)))
        for pattern, replacement in self.renamed:
            key = re.sub(pattern, replacement, key)
        return key

    @property
    def classifier(self) -> str:
        """What the keys of the classifier begin with, its last layer and those before it."""
        return self.head.partition(".")[0] + "."

    def is_head(self, key: str) -> bool:
        """Whether a key is the classifier's or an auxiliary one's."""
        return key.startswith((self.classifier, *self.auxiliary))

    def current_key(self, key: str) -> str:
        """The current key of an array: older files may have another."""
        for pattern, replacement in self.older:
            key = re.sub(pattern, replacement, key)
        return key

    def layout_of(self, leaf: str, rank: int) -> Layout:
        """How the axes of a leaf of that rank change between torch and Flax."""
        if leaf.endswith("/kernel") and rank == 4:
            return CONV
        if leaf.endswith("/kernel") and rank == 2:
            channels = self.flattened.get(self.key_of(leaf))
            return DENSE if channels is None else dense_after_flatten(channels)
        return SAME
