"""Take the parameters of a layer out of the leaves that store them, and put them back.

Leaves are arrays by path. A layer's kernel may be stored with other axes, or as one of a stack.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tlv_jax.arrays import replace
from tlv_jax.types import Layer

Leaves = dict[str, Any]


def take_kernel(layer: Layer, leaves: Mapping[str, Any]) -> Any:
    """Takes a kernel `[*spatial, I, O]`, or the scale `[C]` of a norm, out of its leaf."""
    stored = leaves[layer.weight]
    stored = stored[layer.index] if layer.index else stored
    return stored.transpose(layer.axes).reshape(layer.shape)


def put_kernel(layer: Layer, kernel: Any, leaves: Leaves) -> None:
    """Puts a kernel back into its leaf; the inverse of `take_kernel`."""
    leaf = leaves[layer.weight]
    shape = leaf.shape[len(layer.index) :]
    kernel = kernel.reshape([shape[axis] for axis in layer.axes])
    kernel = kernel.transpose(np.argsort(layer.axes)).astype(leaf.dtype)
    leaves[layer.weight] = replace(leaf, layer.index, kernel) if layer.index else kernel


def take_vector(layer: Layer, path: str, leaves: Mapping[str, Any]) -> Any:
    """Takes a vector out of its leaf; Equinox stores a bias as `[O, 1, 1]`."""
    stored = leaves[path]
    return (stored[layer.index] if layer.index else stored).reshape(-1)


def put_vector(layer: Layer, path: str, vector: Any, leaves: Leaves) -> None:
    """Puts a vector back; the inverse of `take_vector`."""
    leaf = leaves[path]
    vector = vector.reshape(leaf.shape[len(layer.index) :]).astype(leaf.dtype)
    leaves[path] = replace(leaf, layer.index, vector) if layer.index else vector
