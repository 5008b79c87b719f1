"""The values that the layers of a network read of some images, channel by channel.

`C` counts the channels that a layer reads.
"""

import dataclasses
import functools

import jax
import numpy as np

from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.layers.activations import LayerCall, activations
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.network import Network
from tlv_jax.types import Array


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a layer reads: lowest, highest and standard deviation, each `[C]`."""

    lowest: Array
    highest: Array
    deviation: Array

    def is_one_sided(self, channels: np.ndarray) -> bool:
        """Whether some channels mostly reach far above zero only, as an activation function does.

        ReLU gives no negative values, and SiLU, GELU and the like few and small ones. The values of
        a linear layer reach about as far below zero as above.
        """
        low, high = self.lowest[channels], self.highest[channels]
        varying = high > low
        below = np.maximum(-low, 0)[varying] / (high - low)[varying]
        return bool(np.median(below) < 0.25) if below.size else False


def ranges(network: Network, images: Array) -> dict[str, Range]:
    """The values that each conv and dense layer reads in its first call, by path."""
    arrays, put = split_arrays(network.params)
    fn, paths = network.fn, [layer.path for layer in network.layers if layer.kind != "norm"]
    assert fn is not None

    @jax.jit
    @cpu_convolutions
    def measured(arrays: list[Array], images: Array) -> dict[str, Range]:
        calls = activations(fn, put(arrays), images, paths=paths)
        return {path: _range(first) for path, (first, *_) in calls.items()}

    found = jax.device_get(measured(arrays, images))
    return {path: jax.tree.map(lambda array: np.ravel(array), each) for path, each in found.items()}


def _range(call: LayerCall) -> Range:
    values = call.reads.astype("float32")
    axes = tuple(axis for axis in range(values.ndim) if axis not in call.read_axes)
    return Range(values.min(axes), values.max(axes), values.std(axes))
