"""Name the leaves of any pytree by paths, and sort paths as a reader would."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, GetAttrKey

from tlv_jax.errors import ParameterTreeError
from tlv_jax.types import PyTree

# Boxes around one array (NNX variables, Linen's partitioned parameters) end a key path with these.
# So does a dict in their place, which Orbax restores without a target.
BOX_ATTRIBUTES = frozenset({"value", "raw_value", "get_value"})


def is_array(leaf: Any) -> bool:
    """Whether a leaf has the shape and dtype of an array; `jax.ShapeDtypeStruct` has both."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def leaf_path(keys: tuple[Any, ...]) -> str:
    """Joins JAX's key path by `/`: `(DictKey('conv1'), DictKey('kernel'))` -> `conv1/kernel`.

    A tuple as a key, as `flax.traverse_util.flatten_dict` makes them, is several keys.
    """
    if keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name in BOX_ATTRIBUTES:
        keys = keys[:-1]
    return "/".join(
        "/".join(map(str, key.key))
        if isinstance(key, DictKey) and isinstance(key.key, tuple)
        else jax.tree_util.keystr((key,), simple=True)
        for key in keys
    )


def array_leaves(tree: PyTree, *, name: str) -> dict[str, Any]:
    """Returns the array leaves of a tree by path, in the tree's own order.

    Args:
      tree: any pytree; leaves that are not arrays are skipped.
      name: of the tree in errors, for example `src`.

    Raises:
      ParameterTreeError: if there is no array, an array is of a library that JAX does not read, two
        leaves have one path, or one module has two places.
    """
    leaves: dict[str, Any] = {}
    met: dict[int, Any] = {}  # holds the nodes too: else an id could be used again

    def is_met_again(node: Any) -> bool:
        # Two equal dicts are two places; a module is one, and its second place has no leaves.
        again = id(node) in met and not isinstance(node, dict | list | tuple)
        met[id(node)] = node
        return again

    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_met_again):
        path = leaf_path(keys)
        if not jax.tree_util.all_leaves([leaf]):
            _refuse_shared(tree, leaf, path, name)
        elif is_array(leaf):
            _refuse_foreign(leaf, path, name)
            if path in leaves:
                raise ParameterTreeError(
                    f"{name}: two leaves have the path {path!r}, so a plan cannot tell them apart. "
                    "Rename one of the keys."
                )
            leaves[path] = leaf
    if not leaves:
        raise ParameterTreeError(
            f"{name}: expected a pytree of arrays, got a {type(tree).__name__} without any. Pass "
            "the parameters, for example model.init(...)['params']."
        )
    return _without_boxes(leaves)


def with_leaves(tree: PyTree, paths: Iterable[str], leaves: Mapping[str, Any]) -> PyTree:
    """Puts arrays into a tree.

    Args:
      tree: any pytree. Not written to.
      paths: of all its arrays in order, as `array_leaves` gives them.
      leaves: the new arrays by path; all others stay.
    """
    old, structure = jax.tree.flatten(tree)
    remaining = iter(paths)
    new = [leaves.get(next(remaining), leaf) if is_array(leaf) else leaf for leaf in old]
    return structure.unflatten(new)


def _without_boxes(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the last key of a path where it names the box around one array."""
    within = Counter(split_path(path)[0] for path in leaves)
    short = {
        path: module if name in BOX_ATTRIBUTES and module and within[module] == 1 else path
        for path, (module, name) in zip(leaves, map(split_path, leaves), strict=True)
    }
    # Not where another leaf has the shorter path.
    taken = Counter(short.values())
    return {path if taken[short[path]] > 1 else short[path]: leaf for path, leaf in leaves.items()}


def _refuse_foreign(leaf: Any, path: str, name: str) -> None:
    """Raises a `ParameterTreeError` for a tensor of torch, say, which only looks like an array."""
    # The dtype of a random key is none of NumPy's.
    if isinstance(leaf.dtype, np.dtype) or isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return
    kind = type(leaf)
    raise ParameterTreeError(
        f"{name}: leaf {path!r} is a {kind.__module__.partition('.')[0]}.{kind.__name__}, expected "
        "an array of JAX or NumPy. Convert the leaves, in torch: tensor.numpy(force=True). "
        "importers.load and importers.convert read state dicts of known architectures."
    )


def _refuse_shared(tree: PyTree, node: Any, path: str, name: str) -> None:
    """Raises a `ParameterTreeError` for a module at two places, unless it holds no arrays."""
    if not any(is_array(leaf) for leaf in jax.tree.leaves(node)):
        return
    others = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda other: other is node)
    first = next(leaf_path(keys) for keys, other in others if other is node)
    raise ParameterTreeError(
        f"{name}: {first!r} and {path!r} are one {type(node).__name__}, but a pytree cannot share "
        "it: each place would get arrays of its own. Keep one place and call it twice, or in NNX "
        "pass the state of nnx.split(module), in Equinox hold it with eqx.nn.Shared."
    )


def split_path(path: str) -> tuple[str, str]:
    """Splits a leaf's path into its module's path (empty for a bare leaf) and its own name.

    A flat dict, such as a state dict of torch, has dots between modules.
    """
    cut = max(path.rfind("/"), path.rfind("."))
    return path[: max(cut, 0)], path[cut + 1 :]


def path_components(path: str) -> list[str]:
    """The names of the modules on a path: `layer1.0/conv1 -> layer1, 0, conv1`."""
    return [name for name in re.split(r"[/.]", path) if name]


def natural_key(path: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts numbers within a path by value: `layer2` before `layer10`."""
    parts = re.findall(r"\d+|[^\d/.]+", path)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
