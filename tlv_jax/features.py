"""What the last layer of a network reads of each image.

Shapes: images `[N, ...]`, features `[N, D]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.arrays import row_batches
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.errors import OptionError
from tlv_jax.layers.activations import activations
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.network import Network, require_finite, require_runnable
from tlv_jax.types import Layer

__all__ = ["feature_reader", "last_layer"]


def last_layer(network: Network) -> Layer:
    """The conv or dense layer that comes last in order of execution.

    Raises:
      OptionError: if the network is a bare tree.
      ParameterTreeError: if its parameters are shapes without arrays.
    """
    require_runnable(network, "network")
    return [layer for layer in network.layers if layer.kind != "norm"][-1]


def feature_reader(network: Network, layer: Layer, batch: int) -> Callable[[Any], np.ndarray]:
    """Returns what computes what a layer reads of images, averaged over places, float32 `[N, D]`.

    It raises an `OptionError` if an image is not finite, or the layer runs where it cannot be seen.

    Args:
      network: traced, with arrays, of a function of parameters and images.
      layer: the last conv or dense layer.
      batch: images at once. One program is compiled for all batches.

    Raises:
      NonFiniteSourceError: if a parameter of another layer is NaN or infinite.
    """
    fn = require_runnable(network, "network")
    require_finite(network, "network", unread=[layer])  # the head itself is not applied
    arrays, put = split_arrays(network.params)
    arrays = jax.device_put(arrays)

    @jax.jit
    @cpu_convolutions
    def features(arrays: list[Any], images: jax.Array) -> jax.Array:
        call = activations(fn, put(arrays), images, paths=[layer.path])[layer.path][-1]
        return _pooled(call.reads, call.read_axes, len(images), layer.path).astype(jnp.float32)

    def read(images: Any) -> np.ndarray:
        found = []
        for rows in row_batches(len(images), batch):
            found.append(np.asarray(features(arrays, _finite(images[rows], rows[0]))))
        return np.concatenate(found)[: len(images)]

    return read


def _finite(images: Any, start: int) -> Any:
    """The images, if all are finite. On a CPU a ReLU may turn NaN into 0, which looks right."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        fine = np.isfinite(images).all(tuple(range(1, images.ndim)))
        if not fine.all():
            raise OptionError(
                f"images: image {start + int(np.argmin(fine))} has NaN or infinite values. Leave "
                "it out, or check how it is normalized."
            )
    return images


def _pooled(read: jax.Array, channels: tuple[int, ...], batch: int, layer: str) -> jax.Array:
    """What a layer reads, averaged over all axes but those of the batch and the channels."""
    others = [axis for axis in range(read.ndim) if axis not in channels]
    examples = next((axis for axis in others if read.shape[axis] == batch), None)
    if examples is None:
        raise OptionError(
            f"network: expected that its last layer {layer} reads something of each of {batch} "
            f"images, got an array of shape {read.shape}. Trace a function of a batch of images."
        )
    ordered = jnp.moveaxis(read, (examples, *channels), range(1 + len(channels)))
    places = tuple(range(1 + len(channels), read.ndim))
    return ordered.mean(places).reshape(batch, -1)
