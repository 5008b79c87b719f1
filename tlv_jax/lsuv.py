"""Layer-sequential unit-variance initialization: kernels scaled by what they write on real inputs.

Source: Mishkin and Matas (ICLR 2016), "All you need is a good init", arXiv 1511.06422, algorithm 1.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.apply import Leaves, put_kernel, take_kernel
from tlv_jax.arrays import check_key, layer_key, noise, placed
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.layers.interventions import KernelCall, intervene
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.layers.paths import array_leaves, with_leaves
from tlv_jax.network import Network, require_runnable
from tlv_jax.types import Array, Layer, PyTree

ROUNDS = 10  # at most, as published
TOLERANCE = 0.01  # of a deviation, published as 0.1


def lsuv(network: Network, *inputs: Any, key: Array | None = None) -> PyTree:
    """Initializes a network from a batch of images, without any source.

        >>> new_params = tlv_jax.lsuv(dst, images)
        >>> round(float(conv(images, new_params["stem"]).std()), 2)
        1.0

    The kernels of all convs and dense layers become orthonormal. Then, in order of execution, each
    is divided by the standard deviation of what it writes, over all images, places and channels,
    before its bias. All other leaves stay. Call it with a network whose biases are zero and whose
    batch norms are fresh: in inference these hand on what they get, so each layer writes with
    deviation 1.

    One pass over the network is enough where outputs are linear in kernels: what a layer writes is
    divided along with its kernel, before the next layer reads it. A second pass checks that. In
    the published code, the filters of all groups of a grouped conv are orthonormal together. Here
    they are so in each group, since no two groups read the same channels.

    Args:
      network: from `trace`, with arrays in its parameters.
      *inputs: what the traced function takes beside its parameters. A few hundred images,
        normalized as in training; the batch may have another size than the traced one.
      key: random key; `jax.random.key(0)` if None.

    Returns:
      A new tree of the type, structure, shapes and dtypes of the network's parameters. A layer that
      runs several times is divided for its first call.

    Raises:
      OptionError: if the network is a bare tree, a layer runs in a branch or in a loop other than a
        scan over stacked parameters, no input varies, or a layer writes NaN, infinity, or one
        value everywhere; also if a deviation does not become 1 within 1% in 10 passes, since the
        network rescales the kernel itself.
      ParameterTreeError: if a parameter or an input is a `jax.ShapeDtypeStruct`.
    """
    key = jax.random.key(0) if key is None else key
    check_key(key)
    arrays, put = split_arrays(inputs)
    fn = require_runnable(network, "network")
    own = array_leaves(network.params, name="network")
    layers = {layer.path: layer for layer in network.layers if layer.kind != "norm"}
    _check_inputs(arrays)

    @jax.jit
    @cpu_convolutions
    def scale(leaves: Leaves, arrays: list[Any]) -> tuple[Leaves, dict[str, Array]]:
        params = with_leaves(network.params, own, leaves)
        return _scaled(functools.partial(intervene, fn, params, *put(arrays)), leaves, layers)

    leaves = {**own, **_orthonormal(key, own, layers)}
    deviations, off = dict.fromkeys(layers, math.nan), list(layers)
    for _ in range(ROUNDS):
        changed, found = jax.device_get(scale(leaves, arrays))
        leaves.update(changed)
        deviations = {path: float(found[path]) for path in layers}  # in order of execution
        _check_positive(deviations)
        off = [path for path, found in deviations.items() if abs(found - 1) > TOLERANCE]
        if not off:
            new = {path: placed(changed[path], own[path]) for path in changed}
            return with_leaves(network.params, own, new)
    raise OptionError(
        f"lsuv: layer {off[0]!r} writes with standard deviation {deviations[off[0]]:.3g} after "
        f"{ROUNDS} passes, expected 1. The function itself rescales the kernel, so its size does "
        "not matter. Keep the network's own initialization."
    )


def _check_inputs(inputs: Sequence[Any]) -> None:
    """Refuses what cannot be computed with, and inputs that say nothing."""
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in inputs):
        raise ParameterTreeError(
            "inputs: expected arrays, got a jax.ShapeDtypeStruct, which has no values. Tracing "
            "works on shapes; pass arrays of images here."
        )
    numbers = [array for array in inputs if jnp.issubdtype(array.dtype, jnp.number)]
    if not any(float(jnp.ptp(array)) > 0 for array in numbers if array.size):
        raise OptionError(
            "inputs: expected images, got no array of finite numbers that differ. Pass images of "
            "the task, normalized as in training."
        )


def _check_positive(deviations: Mapping[str, float]) -> None:
    for path, deviation in deviations.items():
        if not 0 < deviation < math.inf:
            raise OptionError(
                f"lsuv: layer {path!r} writes with standard deviation {deviation} for these "
                "inputs, expected a finite number above 0. Pass finite images of the task, "
                "normalized as in training, and a network whose norms are fresh."
            )


def _orthonormal(key: Array, leaves: Mapping[str, Any], layers: Mapping[str, Layer]) -> Leaves:
    """The leaves of these layers' kernels, by path, with orthonormal kernels in them."""
    # In NumPy: XLA takes a second to compile a factorization for each shape.
    weights = {layer.weight: leaves[layer.weight] for layer in layers.values()}
    drawn: Leaves = jax.tree.map(np.asarray, jax.device_get(weights))
    for path, layer in layers.items():
        generator = np.random.default_rng(noise(layer_key(key, path), (4,), np))
        put_kernel(layer, _draw(generator, layer), drawn)
    return drawn


def _draw(generator: np.random.Generator, layer: Layer) -> np.ndarray:
    """A kernel `[*spatial, I, O]` whose filters are orthonormal in each group.

    Where a group has more filters than a filter has weights, they cannot be. Then the vectors of
    all filters' weights for one input are orthonormal.
    """
    size, filters = math.prod(layer.shape[:-1]), layer.shape[-1] // layer.groups
    tall = (layer.groups, max(size, filters), min(size, filters))
    drawn = generator.standard_normal(tall)
    # Drawn uniformly, as by a QR factorization, and several times as fast.
    squares, axes = np.linalg.eigh(drawn.swapaxes(1, 2) @ drawn)
    vectors = drawn @ (axes / np.sqrt(squares)[:, None]) @ axes.swapaxes(1, 2)
    kernels = vectors if size >= filters else vectors.swapaxes(1, 2)
    return kernels.swapaxes(0, 1).reshape(layer.shape)


def _scaled(
    run: Callable[..., None], leaves: Mapping[str, Any], layers: Mapping[str, Layer]
) -> tuple[Leaves, dict[str, Array]]:
    """Divides kernels, each before the next layer reads.

    Args:
      run: `intervene` but for `paths` and `see`.
      leaves: of the network, by path.
      layers: that have kernels, by path.

    Returns:
      The leaves that hold kernels, and what each kernel was divided by.
    """
    deviations: dict[str, Array] = {}

    def see(path: str, call: KernelCall) -> Array:
        written = call.writes
        if path not in deviations:
            deviations[path] = jnp.std(written.astype(jnp.float32))
        return (written / deviations[path]).astype(written.dtype)

    run(paths=layers, see=see)
    scaled = {layer.weight: leaves[layer.weight] for layer in layers.values()}
    for path, layer in layers.items():
        put_kernel(layer, take_kernel(layer, scaled) / deviations[path], scaled)
    return scaled, deviations
