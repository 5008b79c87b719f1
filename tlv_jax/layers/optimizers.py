"""Tell an optimizer's state and moving averages in a bare tree from the parameters.

Both have the shapes of the parameters, and so look like layers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.paths import leaf_path, path_components
from tlv_jax.types import Layer, PyTree

# What only optimizers are called: a whole state, or what in it has the parameters' shapes. Restored
# without their classes, optax's and torch's are known by these names.
STATES = {
    *("opt_state", "optimizer_state", "inner_opt_state", "base_optimizer_state"),
    *("inner_state", "inner_states", "hessian_fn_state", "acc_grads", "avg_grad", "grad_sum"),
    *("exp_avg", "exp_avg_sq", "momentum_buffer", "cumulative_gradients", "init_params", "params0"),
}
# Modules are called so too: of an optimizer, where none but fields of one stand beside them.
MOMENTS = {"mu", "nu", "trace", "ema", "v_row", "m1", "m2"}
FIELDS = MOMENTS | {"count", "count_m2", "v", "v_col", "ns_coeffs"}
# A copy of the parameters, such as `ema_params`.
AVERAGE = re.compile("(.*_)?(ema|swa)(_.*)?|averaged?_(params|variables|weights|model|state)")


def refuse_optimizer_state(
    tree: PyTree, leaves: Iterable[str], layers: Sequence[Layer], *, name: str
) -> None:
    """Checks that no layer of a bare tree belongs to the state of an optimizer.

    Args:
      tree: any pytree.
      leaves: the paths of its arrays.
      layers: that were found in it.
      name: of the tree in errors.

    Raises:
      ParameterTreeError: if one does.
    """
    states = _states_by_class(tree) | _states_by_name(leaves)
    for layer in layers:
        path = path_components(layer.weight)
        if any(tuple(path[:place]) in states for place in range(len(path))):
            raise ParameterTreeError(
                f"{name}: {layer.weight!r} belongs to the state of an optimizer, which cannot be "
                "transferred. Pass only the parameters, for example state.params."
            )


def _states_by_class(tree: PyTree) -> set[tuple[str, ...]]:
    """Where the named tuples of optax stand."""

    def is_state(node: Any) -> bool:
        return isinstance(node, tuple) and type(node).__module__.partition(".")[0] == "optax"

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state)
    return {tuple(path_components(leaf_path(keys))) for keys, node in nodes if is_state(node)}


def _states_by_name(paths: Iterable[str]) -> set[tuple[str, ...]]:
    """Where the names of leaves are those of an optimizer's state."""
    states = set()
    beside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for words in map(path_components, paths):
        for place, word in enumerate(words):
            beside[tuple(words[:place])].add(word)
            if word in STATES:
                states.add(tuple(words[: place + 1]))
    return states | {node for node, names in beside.items() if names & MOMENTS and names <= FIELDS}


def without_averages(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers but for moving averages of others: those in `ema_params` beside `params`."""
    paths = [tuple(path_components(layer.weight)) for layer in layers]
    # Each path with one name left out, and which names stand there.
    beside: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for path in paths:
        for place, word in enumerate(path):
            beside[(*path[:place], None, *path[place + 1 :])].add(word)
    return tuple(
        layer
        for layer, path in zip(layers, paths, strict=True)
        if not any(
            AVERAGE.fullmatch(word) and len(beside[(*path[:at], None, *path[at + 1 :])]) > 1
            for at, word in enumerate(path)
        )
    )
