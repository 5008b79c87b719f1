"""The keys of a network's state dict, and the leaf that each of them fills.

Paths of leaves are written `params/layer1.0/conv1/kernel`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from importers.families import FAMILIES
from importers.layouts import Layout
from tlv_jax import models

__all__ = ["Entry", "backbone_fits", "entries_of", "model_of", "shapes_of"]

Shape = tuple[int, ...]


def model_of(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> nn.Module:
    """The network that a state dict of this architecture belongs to.

    The state dict gives the numbers of classes and channels, and whatever else varies within a
    family; torchvision's defaults fill in what is missing.

    Args:
      name: one of `models.names()`.
      state_dict: from current keys in torch to whatever has their shapes.
      dtype: of the computation.
      param_dtype: of the parameters.
    """
    family = FAMILIES[name]
    # A value without a shape is refused by `convert`, which names its key.
    head, stem = (
        tuple(getattr(state_dict.get(key), "shape", ())) for key in (family.head, family.stem)
    )
    model = models.create(
        name,
        num_classes=head[0] if len(head) > 1 and 0 not in head else 1000,
        in_channels=stem[1] if len(stem) == 4 and 0 not in stem else 3,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return model.clone(**family.options(state_dict))


class Entry(NamedTuple):
    """What fills one key of a state dict.

    Attributes:
      leaf: path of the array in the variables.
      layout: how its axes change between torch and Flax.
      shape: in torch.
    """

    leaf: str
    layout: Layout
    shape: Shape


@functools.cache
def entries_of(name: str, model: nn.Module) -> Mapping[str, Entry]:
    """Every key of a network's state dict but its buffers, found without allocating arrays.

    Args:
      name: one of `models.names()`.
      model: of that name, see `model_of`.
    """
    family = FAMILIES[name]
    structs: dict[str, Any] = traverse_util.flatten_dict(models.abstract_variables(model), sep="/")
    entries = {}
    for leaf, struct in structs.items():
        layout = family.layout_of(leaf, struct.ndim)
        stand_in = np.broadcast_to(np.int8(0), struct.shape)  # a view of one byte
        entries[family.key_of(leaf)] = Entry(leaf, layout, layout.to_torch(stand_in).shape)
    return entries


def backbone_fits(name: str, model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dict fits a network, but perhaps for its classifiers.

    There may be other classifiers and whatever else is beside the network, but nothing more within
    it: a ResNet34 has all of a ResNet18, and more blocks.

    Args:
      name: of the architecture.
      model: of that name, see `model_of`.
      state_dict: see `model_of`.
    """
    family, entries = FAMILIES[name], entries_of(name, model)
    body = {key: entry.shape for key, entry in entries.items() if not family.is_head(key)}
    shapes = {key: tuple(getattr(value, "shape", ())) for key, value in state_dict.items()}
    children = {key.partition(".")[0] for key in body}
    strays = shapes.keys() - entries.keys() - family.buffers(name).keys()
    within = any(stray.partition(".")[0] in children for stray in strays)
    return not within and all(shapes.get(key) == shape for key, shape in body.items())


def shapes_of(name: str) -> dict[str, Shape]:
    """Every key of torchvision's state dict of that name, counters excepted, with its shape."""
    entries = entries_of(name, model_of(name, {}))
    buffers = FAMILIES[name].buffers(name)
    return {
        **{key: entry.shape for key, entry in entries.items()},
        **{key: array.shape for key, array in buffers.items()},
    }
