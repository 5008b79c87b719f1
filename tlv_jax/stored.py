"""Take what belongs to a layer out of the leaves that store it, and put it back."""

from collections.abc import Mapping

import jax
import numpy as np

from tlv_jax.types import Array, Layer

__all__ = ["described_kernel", "store_kernel", "store_vector", "stored_kernel", "stored_vector"]


def stored_kernel(layer: Layer, leaves: Mapping[str, Array]) -> Array:
    """Takes a layer's kernel out of its leaf, `[*spatial, I, O]`, of a norm its scale `[C]`."""
    stored = leaves[layer.weight]
    if layer.index:
        stored = stored[layer.index]
    # Each step is a program of its own where nothing is traced: most leaves need none.
    if layer.axes != tuple(range(stored.ndim)):
        stored = stored.transpose(layer.axes)
    return stored if stored.shape == layer.shape else stored.reshape(layer.shape)


def described_kernel(layer: Layer, leaves: Mapping[str, jax.Array]) -> jax.ShapeDtypeStruct:
    """What a program is lowered for that is called with what `stored_kernel` takes out."""
    leaf = leaves[layer.weight]
    return jax.ShapeDtypeStruct(
        layer.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None
    )


def store_kernel(layer: Layer, kernel: Array, leaves: dict[str, Array]) -> None:
    """Puts a kernel back as its leaf stores it; the inverse of `stored_kernel`."""
    leaf = leaves[layer.weight]
    shape = leaf.shape[len(layer.index) :]
    permuted = tuple(shape[axis] for axis in layer.axes)
    if kernel.shape != permuted:
        kernel = kernel.reshape(permuted)
    if layer.axes != tuple(range(kernel.ndim)):
        kernel = kernel.transpose(np.argsort(layer.axes))
    if kernel.dtype != leaf.dtype:
        kernel = kernel.astype(leaf.dtype)
    leaves[layer.weight] = leaf.at[layer.index].set(kernel) if layer.index else kernel


def stored_vector(layer: Layer, path: str, leaves: Mapping[str, Array]) -> Array:
    """Takes a vector of a layer out of its leaf; Equinox keeps a bias as `[O, 1, 1]`."""
    stored = leaves[path]
    return (stored[layer.index] if layer.index else stored).reshape(-1)


def store_vector(layer: Layer, path: str, vector: Array, leaves: dict[str, Array]) -> None:
    """Puts it back; the inverse of `stored_vector`."""
    leaf = leaves[path]
    vector = vector.reshape(leaf.shape[len(layer.index) :])
    leaves[path] = leaf.at[layer.index].set(vector) if layer.index else vector
