"""Find the layers of a bare parameter tree by the names and ranks of its leaves.

Works on shapes alone. `kernel` and `w` hold `[*spatial, I, O]` (Flax, Haiku), `weight` and names
that end so hold `[O, I, *spatial]` (Equinox, torch). A leaf of another name is a layer by itself if
it has two axes (dense), or four or five (conv), unless it is a lookup table or a vector that is
ready to broadcast. `tlv_jax.trace` needs no such conventions.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.paths import array_leaves, natural_key, split_path
from tlv_jax.layers.zoo_order import sort_modules
from tlv_jax.types import Kind, Layer, PyTree

# One module has leaves in several of these (Linen's variables, `{"params": ..., "state": ...}`).
COLLECTIONS = ("params", "batch_stats", "state")
KERNELS = frozenset({"kernel", "w", "weight"})
NORM_SCALES = frozenset({"scale", "weight"})
BIASES = frozenset({"bias", "b", "offset"})
STATISTICS = {"mean": "mean", "var": "var", "running_mean": "mean", "running_var": "var"}
LOOKED_UP = frozenset({"embedding", "relative_position_bias_table"})  # rows by index
MOVING_AVERAGE = frozenset({"average", "hidden", "counter"})  # in Haiku a module by itself
# Attention projections [D, heads, D'] look like one-dimensional convs; only a trace can tell.
ATTENTION = frozenset({"query", "key", "value", "out"})


def find_layers(tree: PyTree, *, name: str) -> tuple[tuple[Layer, ...], str | None]:
    """Lists the layers of a parameter tree.

    Args:
      tree: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      name: of the tree in errors.

    Returns:
      The layers in order, and the family of this project whose order of execution it is; None if
      it is the natural order of the paths.

    Raises:
      ParameterTreeError: if the tree holds no array, or a layer with an axis of size 0.
    """
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    leaves = array_leaves(tree, name=name)
    collections = any(path.startswith(("params/", "params.")) for path in leaves)
    for path in leaves:
        module, leaf_name = split_path(path)
        collection, *rest = re.split("[/.]", module, maxsplit=1)
        if collections and collection in COLLECTIONS:
            module = "".join(rest)
        modules[module][leaf_name] = path
    _join_averages(modules)
    order, family = sort_modules(modules)
    layers = [layer for module in order for layer in _layers_of(modules[module], leaves)]
    # Every kernel of a known family has a module.
    if family is None or any(layer.path == layer.weight for layer in layers):
        family = None
        layers.sort(key=lambda layer: natural_key(layer.path))
    for layer in layers:
        if 0 in layer.shape:
            raise ParameterTreeError(
                f"{name}: leaf {layer.weight!r} of shape {leaves[layer.weight].shape} is empty. "
                "Remove it from the tree."
            )
    return tuple(layers), family


def _join_averages(modules: dict[str, dict[str, str]]) -> None:
    """Gives a norm the running statistics that Haiku keeps at `norm/~/mean_ema/average`."""
    for module in [name for name, names in modules.items() if names.keys() >= MOVING_AVERAGE]:
        # `hidden` and `counter` stay with the target: they say how far its own average has come.
        # A norm reads only the average.
        average = modules.pop(module)["average"]
        norm, _, name = module.rpartition("/~/")
        statistic = name.removesuffix("_ema")
        if norm in modules and statistic in STATISTICS:
            modules[norm][statistic] = average


def _layers_of(names: dict[str, str], leaves: dict[str, Any]) -> list[Layer]:
    """The layers made of one module's own leaves: none, one, or one for each bare kernel."""
    vectors = sorted(
        (STATISTICS.get(name, "bias"), path)
        for name, path in names.items()
        # Haiku's are ready to broadcast: [1, 1, 1, C].
        if name in BIASES | STATISTICS.keys() and _is_vector(leaves[path].shape)
    )
    layers: list[Layer] = []
    for name, path in names.items():
        leaf, (module, _) = leaves[path], split_path(path)
        kind = _kind(module, name, leaf.shape)
        bias = leaves[names["bias"]].shape if "bias" in names else ()
        if name == "weight" and leaf.ndim > 1 and bias == leaf.shape:
            continue  # a layer norm over several axes
        if kind is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        axes = tuple(range(leaf.ndim))
        if name.endswith("weight") and kind != "norm":
            axes = (*axes[2:], 1, 0)
        shape = (leaf.size,) if kind == "norm" else tuple(leaf.shape[axis] for axis in axes)
        # Several bare kernels may stand in one module: each has a path, and none the vectors.
        if name in KERNELS | NORM_SCALES:
            layers.append(Layer(module or path, kind, path, shape, axes, vectors=tuple(vectors)))
        else:
            layers.append(Layer(path, kind, path, shape, axes))
    return layers


def _kind(module: str, name: str, shape: tuple[int, ...]) -> Kind | None:
    """The kind of layer that a leaf is the kernel or scale of; None if of none."""
    rank = len(shape)
    if name == "scale" and _is_vector(shape):
        return "norm"
    if name == "weight" and rank == 1:
        return "norm"
    # One-dimensional convs are known by name alone: other arrays of three axes are many things.
    conv1d = name in KERNELS and module.rpartition("/")[2] not in ATTENTION
    if name in BIASES | STATISTICS.keys() | LOOKED_UP | {"scale"} or (rank == 3 and not conv1d):
        return None
    if name not in KERNELS and _is_vector(shape):
        return None
    return "dense" if rank == 2 else "conv" if rank in (3, 4, 5) else None


def _is_vector(shape: tuple[int, ...]) -> bool:
    """Whether at most one axis is longer than 1: `[C]`, or ready to broadcast, `[1, 1, 1, C]`."""
    return len(shape) > 0 and max(shape) == math.prod(shape)


def refuse_stacks(leaves: Mapping[str, Any], layers: Iterable[Layer], *, name: str) -> None:
    """Checks that no kernel of a bare tree holds several layers, as `nn.scan` or `vmap` make them.

    Four kernels `[3, 3, I, O]` are one leaf `[4, 3, 3, I, O]`, which could be a 3-D conv. Its bias
    `[4, O]` tells, or the scale `[4, O]` of a norm in the same block.

    Args:
      leaves: of the tree, from `array_leaves`.
      layers: that were found in it.
      name: of the tree in errors.

    Raises:
      ParameterTreeError: if one does.
    """
    scales = {
        (_around(path), leaf.shape[0])
        for path, leaf in leaves.items()
        if split_path(path)[1] == "scale" and leaf.ndim == 2 and not _is_vector(leaf.shape)
    }
    for layer in layers:
        shape, (_, own) = leaves[layer.weight].shape, split_path(layer.weight)
        module = layer.weight.removesuffix(own)
        biases = [leaves[module + bias].shape for bias in BIASES if module + bias in leaves]
        known = (shape[0], layer.shape[-1]) in biases or (_around(layer.weight), shape[0]) in scales
        if len(shape) > 2 and known:
            raise ParameterTreeError(
                f"{name}: leaf {layer.weight!r} of shape {shape} seems to hold {shape[0]} layers, "
                "stacked by nn.scan or vmap. A bare tree does not say so. Pass a network instead: "
                "tlv_jax.trace(fn, params, images)."
            )


def _around(path: str) -> str:
    """The path of what is around a leaf's module."""
    return split_path(split_path(path)[0])[0]
