"""Name the leaves of any pytree by paths, and sort paths as a reader would."""

import re
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from tlv_jax.errors import ParameterTreeError
from tlv_jax.types import PyTree

# Boxes around one array (NNX variables, Linen's partitioned parameters) end a key path with these.
BOX_ATTRIBUTES = frozenset({"value", "raw_value", "get_value"})


def is_array(leaf: Any) -> bool:
    """Whether a leaf has the shape and dtype of an array; `jax.ShapeDtypeStruct` has both."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def leaf_path(keys: tuple[Any, ...]) -> str:
    """Joins JAX's key path by `/`: `(DictKey('conv1'), DictKey('kernel'))` -> `conv1/kernel`."""
    if keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name in BOX_ATTRIBUTES:
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def array_leaves(tree: PyTree, *, name: str) -> dict[str, Any]:
    """Returns the array leaves of a tree by path, in the tree's own order.

    Args:
      tree: any pytree; leaves that are not arrays are skipped.
      name: of the tree in errors, for example `src`.

    Raises:
      ParameterTreeError: if there is no array, two leaves have one path, or one module has two
        places.
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
    return leaves


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
    """Splits a leaf's path into its module's path (empty for a bare leaf) and its own name."""
    module, _, name = path.rpartition("/")
    return module, name


def path_components(path: str) -> list[str]:
    """The names of the modules on a path: `layer1.0/conv1 -> layer1, 0, conv1`."""
    return [name for name in re.split(r"[/.]", path) if name]


def natural_key(path: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts numbers within a path by value: `layer2` before `layer10`."""
    parts = re.findall(r"\d+|[^\d/.]+", path)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
