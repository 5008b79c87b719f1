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
from importers.wrappers import unwrap
from tlv_jax import models

__all__ = ["Entry", "entries_of", "model_of", "shapes_of"]

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
      state_dict: as for `importers.convert`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """
    family = FAMILIES[name]
    state_dict = unwrap(state_dict, family.stem)
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


def shapes_of(name: str) -> dict[str, Shape]:
    """Every key of torchvision's state dict of that name, counters excepted, with its shape."""
    entries = entries_of(name, model_of(name, {}))
    buffers = FAMILIES[name].buffers(name)
    return {
        **{key: entry.shape for key, entry in entries.items()},
        **{key: array.shape for key, array in buffers.items()},
    }
