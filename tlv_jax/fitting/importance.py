"""How much each channel of a source matters to what reads it."""

from collections.abc import Mapping

import numpy as np

from tlv_jax.apply import take_kernel
from tlv_jax.fitting.ranges import Range
from tlv_jax.fitting.roles import Role
from tlv_jax.layers.paths import array_leaves
from tlv_jax.network import Network


def importance(
    network: Network, roles: Mapping[str, Role], ranges: Mapping[str, Range]
) -> dict[str, np.ndarray]:
    """How much each channel that a conv writes matters to what reads it, by the conv's path.

    The standard deviation of what the next layer that is not depthwise reads, times the norm of the
    weights that read it.
    """
    leaves = array_leaves(network.params, name="src")
    layers = {layer.path: layer for layer in network.layers}
    graph = network.channels
    assert graph is not None
    found = {}
    for path, role in roles.items():
        worth = dict.fromkeys(role.space, 1.0 if role.reads_all is None else 0.0)
        if role.reads_all is not None:
            reader = layers[role.reads_all]
            kernel = np.asarray(take_kernel(reader, leaves), np.float64)
            inputs = np.sqrt((kernel**2).sum(tuple(range(kernel.ndim - 2))))  # [I, G O]
            norms = np.linalg.norm(inputs.reshape(len(inputs), reader.groups, -1), axis=2).T
            each = ranges[reader.path].deviation * norms.reshape(-1)
            worth.update(zip(graph[reader.path].reads, each.tolist(), strict=True))
        found[path] = np.array([worth[label] for label in role.space])
    return found
