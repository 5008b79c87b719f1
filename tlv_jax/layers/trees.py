"""Find the layers of a bare parameter tree by the names and ranks of its leaves.

Works on shapes alone. `kernel` and `w` hold `[*spatial, I, O]` (Flax, Haiku), `weight` holds
`[O, I, *spatial]` (Equinox, torch). A leaf of another name is a layer by itself if it has two axes
(dense), or four or five (conv), unless it is a lookup table. `tlv_jax.trace` needs no such
conventions.
"""

import math
from collections import defaultdict
from typing import Any

import jax.numpy as jnp

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.paths import array_leaves, natural_key, split_path
from tlv_jax.layers.zoo_order import sort_modules
from tlv_jax.types import Kind, Layer, PyTree

# One module has leaves in several of these (Linen's variables, `{"params": ..., "state": ...}`).
COLLECTIONS = ("params", "batch_stats", "state")
CHANNELS_LAST = frozenset({"kernel", "w"})
CHANNELS_FIRST = frozenset({"weight"})
LOOKED_UP = frozenset({"embedding", "relative_position_bias_table"})  # rows by index
NORM_SCALES = frozenset({"scale", "weight"})
BIASES = frozenset({"bias", "b", "offset"})
STATISTICS = frozenset({"mean", "var"})
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
    collections = any(path.startswith("params/") for path in leaves)
    for path in leaves:
        module, leaf_name = split_path(path)
        if collections and path.split("/")[0] in COLLECTIONS:
            module = module.partition("/")[2]
        modules[module][leaf_name] = path
    _join_averages(modules)
    order, family = sort_modules([module for module in modules if module])
    layers: list[Layer] = []
    for module in [*order, *([""] if "" in modules else [])]:
        layers.extend(_layers_of_module(module, modules[module], leaves))
    if any(layer.path == layer.weight for layer in layers):
        family = None  # kernels without a name of their own: no family has them
    if family is None:
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


def _layers_of_module(module: str, names: dict[str, str], leaves: dict[str, Any]) -> list[Layer]:
    """The layers made of one module's own leaves: none, one, or one for each bare kernel."""
    layers: list[Layer] = []
    vectors = _vectors(names, leaves)
    for name, path in names.items():
        leaf = leaves[path]
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        named = name in CHANNELS_LAST | CHANNELS_FIRST | NORM_SCALES
        kind = _kind(module, name, leaf.shape)
        if kind is None:
            continue
        axes = tuple(range(leaf.ndim))
        shape = (leaf.size,) if kind == "norm" else leaf.shape
        if name in CHANNELS_FIRST and kind != "norm":
            axes = (*axes[2:], 1, 0)
            shape = tuple(leaf.shape[axis] for axis in axes)
        layers.append(
            Layer(
                path=_layer_path(module, path) if named else path,
                kind=kind,
                weight=path,
                shape=tuple(int(size) for size in shape),
                axes=axes,
                vectors=vectors if named else (),
            )
        )
    return layers


def _layer_path(module: str, weight: str) -> str:
    """The weight's module as the tree spells it, collection included."""
    return split_path(weight)[0] or weight


def _kind(module: str, name: str, shape: tuple[int, ...]) -> Kind | None:
    ndim = len(shape)
    if name in NORM_SCALES and ndim == 1:
        return "norm"
    if name == "scale" and ndim > 1 and max(shape) == math.prod(shape):
        return "norm"  # Haiku's, ready to broadcast: [1, 1, 1, C]
    if name in CHANNELS_LAST | CHANNELS_FIRST:
        if ndim == 3 and module.rpartition("/")[2] in ATTENTION:
            return None
        return "dense" if ndim == 2 else "conv" if ndim > 2 else None
    if name in BIASES | STATISTICS | NORM_SCALES | LOOKED_UP:
        return None
    return {2: "dense", 4: "conv", 5: "conv"}.get(ndim)  # type: ignore[return-value]


def _vectors(names: dict[str, str], leaves: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Bias and running statistics of a module, under common names."""
    found = []
    for name, path in names.items():
        shape = leaves[path].shape
        if name in BIASES | STATISTICS and max(shape, default=0) == leaves[path].size:
            found.append(("bias" if name in BIASES else name, path))
    return tuple(sorted(found))
