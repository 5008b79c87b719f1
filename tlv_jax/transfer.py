"""Transfer on one page: plan who gives what to whom, then apply it to arrays.

A network is a `Network` from `trace`, or a bare tree of parameters.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.apply import Leaves, fit_leaves
from tlv_jax.arrays import check_key, fold_in, placed
from tlv_jax.consistent.insert import Insertions, plan_insertions
from tlv_jax.consistent.plan import plan_channels
from tlv_jax.errors import (
    NonFiniteSourceError,
    OptionError,
    ParameterTreeError,
    PlanMismatchError,
)
from tlv_jax.layers.blocks import flatten_blocks, standardize_blocks, standardize_graph
from tlv_jax.layers.paths import array_leaves, with_leaves
from tlv_jax.methods import BARE, DEFAULT, Method
from tlv_jax.network import Network, as_networks, is_mixture, params_of
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import (
    OTHER_NORM,
    best_pairs,
    check_rule,
    joined,
    normalize_alike,
    raise_no_pairs,
    reasons_to_stay,
    touched_leaves,
)
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.types import Array, PyTree, Untouched

ALIKE = 0.5  # similarity below which published transfers mostly hurt


def transfer(
    src: Network | PyTree,
    dst: Network | PyTree,
    *,
    key: Array | None = None,
    method: Method | None = None,
) -> PyTree:
    """Initializes one network from the pretrained weights of another: the one-liner.

        >>> new_params = tlv_jax.transfer(src, dst)
        >>> [name for name in params if not np.array_equal(new_params[name], params[name])]
        ['stem', 'body']

    Args:
      src: the pretrained network, from `trace`, or a bare tree of arrays: a kernel is
        `[*spatial, I, O]`, or `[O, I, *spatial]` if its leaf is named `weight`. A list of
        networks is a mixture: each target layer takes the source layer that fits it best.
      dst: the target with its own initial parameters, a network or a bare tree. Not written to.
      key: random key; `jax.random.key(0)` if None.
      method: how the transfer is made, see `tlv_jax.methods`. None means `methods.DEFAULT`, or
        `methods.BARE` where a bare tree takes part.

    Returns:
      A new tree of the type, structure, shapes, dtypes and metadata of the target's parameters.
      Leaves that the plan leaves untouched are the target's own.

    Raises:
      TLVError: as `plan_transfer` and `apply_transfer`.

    Warns:
      SimilarityWarning: where `similarity` is below 0.5.
      UnknownOrderWarning: for a bare tree of no known architecture.
    """
    sources, target = as_networks(src, dst)
    source = list(sources) if is_mixture(src) else sources[0]
    plan = plan_transfer(source, target, method)
    alike = similarity(source, target)
    if alike < ALIKE:
        warnings.warn(
            f"The two networks are unlike: similarity {alike:.2f}, below {ALIKE}. Published "
            "transfers of such pairs mostly hurt. Also train a twin that starts from noise. "
            "plan_transfer and apply_transfer give no such warning.",
            SimilarityWarning,
            stacklevel=2,
        )
    return apply_transfer(plan, jax.random.key(0) if key is None else key, source, target)


def plan_transfer(
    src: Network | PyTree, dst: Network | PyTree, method: Method | None = None
) -> TransferPlan:
    """Plans a transfer from shapes alone. Nothing is allocated on a device.

        >>> plan = tlv_jax.plan_transfer(src, dst, tlv_jax.methods.DPIAT)
        >>> plan.pairs
        (('stem', 'stem'), ('body', 'body'), ('head', 'head'))

    Args:
      src: as for `transfer`; each array may be a `jax.ShapeDtypeStruct`.
      dst: the target, also a network or a bare tree.
      method: as for `transfer`.

    Returns:
      A frozen, hashable plan, which prints as a table.

    Raises:
      ParameterTreeError: if a tree holds no arrays, or the target no layer of the method's kinds.
      NoSourceLayerError: if the source has no layer of any kind that the target asks for.
      OptionError: for a method that needs traced networks and gets a bare tree, or a rule that does
        not return the target's shape.

    Warns:
      UnknownOrderWarning: for a bare tree of no known architecture.
    """
    if not isinstance(method, Method | None):
        raise OptionError(
            f"method: expected a tlv_jax.Method such as tlv_jax.methods.TLVFC, got {method!r}."
        )
    sources, target = as_networks(src, dst)
    layers_of, source_graph = joined(sources)
    source_layers = tuple(layer for layers in layers_of for layer in layers)
    traced = source_graph is not None and target.channels is not None
    method = method or (DEFAULT if traced else BARE)
    standardize = method.standardize or (standardize_graph if traced else standardize_blocks)

    # Who gives to whom.
    wanted = standardize(target.layers, method.kinds)
    offered = [standardize(layers, method.kinds) for layers in layers_of]
    pairs = best_pairs([method.match(offer, wanted) for offer in offered])
    if not pairs:
        raise_no_pairs(source_layers, flatten_blocks(wanted), target.layers, method.kinds)
    matched = {pair.target.path for pair in pairs}
    unlike = {pair.target.path: OTHER_NORM for pair in pairs if not normalize_alike(pair)}
    pairs = tuple(pair for pair in pairs if pair.target.path not in unlike)
    check_rule(method.rule, pairs)

    # What happens to the others, and which channels go where.
    if method.channels is not None and not traced:
        raise OptionError(
            f"channels={method.channels}: needs to know the channels of both networks, but got a "
            "bare tree. Pass networks from tlv_jax.trace(fn, params, images), or set channels=None."
        )
    added = Insertions((), {}, target.channels or {})
    if method.insert == "identity":
        left = [layer for layer in flatten_blocks(wanted) if layer.path not in matched]
        added = plan_insertions(target.layers, left, added.graph)
    channels = None
    if method.channels is not None and source_graph is not None:
        channels = plan_channels(pairs, method.channels, source_graph, added.graph)
    served = matched | {entry.layer.path for entry in added.inserted}
    drawn_from = tuple(layer for layer in source_layers if layer.kind == "dense")
    drawn = tuple(
        layer for layer in target.layers if layer.kind == "dense" and layer.path not in served
    )
    if method.head == "keep" or not (drawn and drawn_from):
        drawn, drawn_from = (), ()

    biases = "bias" in method.kinds
    read, replaced = touched_leaves(pairs, biases, drawn, drawn_from, added.inserted)
    source_leaves = array_leaves(_tree_of(src), name="src")
    target_leaves = array_leaves(target.params, name="dst")
    kinds = {layer.kind for offer in offered for layer in flatten_blocks(offer)}
    reasons = reasons_to_stay(target.layers, matched, method, kinds, {**unlike, **added.reasons})
    return TransferPlan(
        layer_pairs=pairs,
        rule=method.rule,
        rescale=method.rescale,
        biases=biases,
        drawn=drawn,
        drawn_from=drawn_from,
        untouched=tuple(
            Untouched(path, reasons.get(path, "not a kernel, norm or bias of a layer"))
            for path in target_leaves
            if path not in replaced
        ),
        source_leaves=_shapes(source_leaves, read),
        target_leaves=_shapes(target_leaves, replaced),
        source_order="; ".join(dict.fromkeys(source.order for source in sources)),
        target_order=target.order,
        channels=channels,
        inserted=added.inserted,
    )


def apply_transfer(
    plan: TransferPlan,
    key: Array,
    src: Network | PyTree,
    dst: Network | PyTree,
    *,
    check_finite: bool = True,
) -> PyTree:
    """Applies a plan. Pure; works under `jit` (plan static or closed over) and `vmap` over keys.

        >>> plan = tlv_jax.plan_transfer(src, dst, tlv_jax.methods.TLVFC)
        >>> one, same, other = (
        ...     tlv_jax.apply_transfer(plan, jax.random.key(seed), src, dst) for seed in (0, 0, 1)
        ... )
        >>> bool(np.all(one["stem"] == same["stem"])), bool(np.all(one["stem"] == other["stem"]))
        (True, False)

    Where all arrays are concrete, it computes with NumPy and compiles nothing. Where anything is
    traced, or lies on devices of other hosts, the same code computes with `jax.numpy`. Both draw
    the same numbers. Their answers differ only where two variances are equal up to rounding.

    Args:
      plan: from `plan_transfer`, for networks of these shapes.
      key: random key, consumed. Each layer draws from a key folded with a hash of its path, so its
        answer does not depend on which other layers are in the plan.
      src: the source, a network, a bare tree, or a list of networks.
      dst: the target with its own parameters; not written to.
      check_finite: refuse NaN and infinity in the source. A traced source cannot be checked.

    Returns:
      A new tree of the type, structure, shapes and dtypes of the target's parameters. Arrays lie
      where the target's own lie.

    Raises:
      OptionError: if `key` is not a random key.
      PlanMismatchError: if a leaf that the plan names is missing or of another shape.
      ParameterTreeError: if such a leaf is a `jax.ShapeDtypeStruct`, which has no values.
      NonFiniteSourceError: if a source leaf that the plan reads is not finite.
    """
    check_key(key)
    dst_params = params_of(dst)
    all_leaves = array_leaves(dst_params, name="dst")
    source = _named(plan.source_leaves, array_leaves(_tree_of(src), name="src"), "src")
    target = _named(plan.target_leaves, all_leaves, "dst")
    arrays = [*source.values(), *target.values()]
    # Inside `jit` drawn numbers are traced, even where no argument is.
    drawn = fold_in(key, 0)
    traced = any(isinstance(array, Tracer) for array in [drawn, *arrays])
    if traced or any(_is_remote(array) for array in arrays):
        if check_finite:
            _refuse_unless_finite({p: a for p, a in source.items() if not isinstance(a, Tracer)})
        fit = fit_leaves if traced else _jitted(target)
        source, target = jax.tree.map(jnp.asarray, (source, target))
        fitted = fit(plan, key, source, target, jnp)
    else:
        # Fetched together: one wait for an accelerator.
        near, own = jax.device_get((source, target))
        near, own = ({p: np.asarray(a) for p, a in leaves.items()} for leaves in (near, own))
        if check_finite:
            _refuse_unless_finite(near)
        with np.errstate(all="ignore"):  # JAX does not warn of overflow
            fitted = fit_leaves(plan, key, near, own, np)
        fitted = {path: placed(array, target[path]) for path, array in fitted.items()}
    return with_leaves(dst_params, all_leaves, fitted)


def _jitted(target: Mapping[str, Any]) -> Any:
    """`fit_leaves` as one program. Its results are sharded as the target is."""
    shardings = {path: getattr(leaf, "sharding", None) for path, leaf in target.items()}
    return jax.jit(fit_leaves, static_argnums=(0, 4), out_shardings=shardings)


def _is_remote(array: Any) -> bool:
    return isinstance(array, Array) and not array.is_fully_addressable


def _refuse_unless_finite(leaves: Leaves) -> None:
    """Raises a `NonFiniteSourceError` at the first leaf with NaN or infinity."""
    for path, leaf in leaves.items():
        xp = np if isinstance(leaf, np.ndarray) else jnp
        with jax.ensure_compile_time_eval():  # inside `jit` too
            count = int(xp.sum(~xp.isfinite(leaf)))
        if count:
            raise NonFiniteSourceError(
                f"src: leaf {path!r} has {count} values that are NaN or infinite; a transfer would "
                "spread them. Load the checkpoint again, or pass check_finite=False to "
                "apply_transfer to transfer them."
            )


def _tree_of(src: Network | PyTree) -> PyTree:
    trees = [params_of(network) for network in (src if is_mixture(src) else [src])]
    return trees if len(trees) > 1 else trees[0]


def _named(
    expected: Iterable[tuple[str, tuple[int, ...]]], leaves: Mapping[str, Any], name: str
) -> Leaves:
    """The leaves that a plan names. Raises if one is missing, of another shape, or only a shape."""
    found = {}
    for path, shape in expected:
        came = tuple(leaves[path].shape) if path in leaves else "no such leaf"
        if came != shape:
            raise PlanMismatchError(
                f"{name}: the plan expects leaf {path!r} of shape {shape}, found {came}. Make a "
                "plan for these networks with plan_transfer(src, dst)."
            )
        if isinstance(leaves[path], jax.ShapeDtypeStruct):
            raise ParameterTreeError(
                f"{name}: leaf {path!r} is a jax.ShapeDtypeStruct, which has no values. "
                "plan_transfer works on shapes; pass arrays to apply_transfer and transfer."
            )
        found[path] = leaves[path]
    return found


def _shapes(
    leaves: Mapping[str, Any], paths: Iterable[str]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((path, tuple(leaves[path].shape)) for path in paths)
