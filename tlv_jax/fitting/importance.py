"""How much each channel of a source matters to what reads it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.apply import take_kernel
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.fitting.roles import Role
from tlv_jax.layers.activations import activations
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.layers.paths import array_leaves
from tlv_jax.network import Network
from tlv_jax.types import Array


def importance(network: Network, roles: Mapping[str, Role], images: Array) -> dict[str, np.ndarray]:
    """How much each channel that a conv writes matters, by the conv's path, `[O]`.

    The standard deviation of what the next layer that is not depthwise reads of it, times the norm
    of the weights that read it.
    """
    leaves = array_leaves(network.params, name="src")
    layers = {layer.path: layer for layer in network.layers}
    readers = dict.fromkeys(role.reads_all for role in roles.values() if role.reads_all)
    deviations = _deviations(network, list(readers), images)
    assert network.channels is not None
    found = {}
    for path, role in roles.items():
        worth = dict.fromkeys(role.space, 1.0 if role.reads_all is None else 0.0)
        if role.reads_all is not None:
            reader = layers[role.reads_all]
            kernel = np.asarray(take_kernel(reader, leaves), np.float64)
            inputs = np.sqrt((kernel**2).sum(tuple(range(kernel.ndim - 2))))  # [I, G O]
            norms = np.linalg.norm(inputs.reshape(len(inputs), reader.groups, -1), axis=2).T
            each = deviations[reader.path] * norms.reshape(-1)
            # A dense layer reads each channel of a grid at all places.
            for label, value in zip(network.channels[reader.path].reads, each, strict=True):
                worth[label] = worth.get(label, 0.0) + float(value)
        found[path] = np.array([worth[label] for label in role.space])
    return found


def _deviations(network: Network, paths: list[str], images: Array) -> dict[str, np.ndarray]:
    """The standard deviation of each channel that layers read, by their path."""
    arrays, put = split_arrays(network.params)
    fn = network.fn
    assert fn is not None

    @jax.jit
    @cpu_convolutions
    def measured(arrays: list[Any], images: Array) -> dict[str, Array]:
        calls = activations(fn, put(arrays), images, paths=paths)
        found = {}
        for path, (call, *_) in calls.items():
            others = [axis for axis in range(call.reads.ndim) if axis not in call.read_axes]
            found[path] = jnp.std(call.reads.astype(jnp.float32), others).reshape(-1)
        return found

    return jax.device_get(measured(arrays, images))
