"""Carry out a plan on arrays."""

import functools
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax import heads, rules
from tlv_jax.consistency import (
    ChannelPlan,
    LayerChannels,
    axis_places,
    copies_of,
    gather_kernel,
    kept_channels,
    own_places,
    take_vector,
)
from tlv_jax.deepening import identity_kernel
from tlv_jax.errors import PlanMismatchError
from tlv_jax.finiteness import finite_sums, refuse_unless_finite
from tlv_jax.layer_keys import layer_keys, typed_key
from tlv_jax.paths import array_leaves, is_array, leaf_path
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import fitted_vectors, plan_transfer
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.stored import store_kernel, store_vector, stored_kernel, stored_vector
from tlv_jax.types import Array, LayerPair, PyTree, Rule

__all__ = ["apply_transfer", "transfer"]

Leaves = dict[str, Any]
BATCHES = 24  # that kernels are divided into: the fewer, the faster, and the more memory
ALIKE = 0.5  # similarity below which published transfers mostly hurt


def transfer(
    src_params: PyTree,
    dst_params: PyTree,
    *,
    key: Array | None = None,
    plan: TransferPlan | None = None,
) -> PyTree:
    """Initializes one network from the pretrained weights of another: the one-liner.

    Compiles once for a pair of architectures; further calls with other weights and keys compile
    nothing.

    Args:
      src_params: pretrained parameters, any pytree of arrays; a kernel is `[*spatial, I, O]`, or
        `[O, I, *spatial]` if its leaf is named `weight`. A list of such trees is a mixture of
        several sources, of which each target layer takes the one that fits it best.
      dst_params: the target's own initial parameters, likewise. Not written to.
      key: random key; `jax.random.key(0)` if None.
      plan: who gives what to whom; `plan_transfer(src_params, dst_params)` if None.

    Returns:
      A new tree of the structure, shapes and dtypes of `dst_params`. Leaves that the plan leaves
      untouched are those of `dst_params` itself.

    Raises:
      TLVError: as `plan_transfer` and `apply_transfer`.

    Warns:
      SimilarityWarning: without a plan, where `similarity` is below 0.5.
    """
    if plan is None:
        plan = plan_transfer(src_params, dst_params)
        _warn_if_unlike(src_params, dst_params)
    if key is None:
        key = jax.random.key(0)
    return apply_transfer(plan, key, src_params, dst_params)


def _warn_if_unlike(src_params: PyTree, dst_params: PyTree) -> None:
    sources = src_params if isinstance(src_params, list) else [src_params]
    value = max(similarity(source, dst_params) for source in sources)
    if value < ALIKE:
        warnings.warn(
            f"The two networks are unlike: similarity {value:.2f}, below {ALIKE}. Published "
            "transfers of such pairs mostly hurt; train a twin that starts from noise beside it. "
            "A plan of your own is carried out without this warning.",
            SimilarityWarning,
            stacklevel=3,
        )


def apply_transfer(
    plan: TransferPlan,
    key: Array,
    src_params: PyTree,
    dst_params: PyTree,
    *,
    check_finite: bool = True,
) -> PyTree:
    """Applies a plan. Pure; works under `jit` (plan static or closed over) and `vmap` over keys.

    Each layer draws from `fold_in(key, hash of its path)`, so its answer does not depend on which
    other layers are in the plan.

    Where all arrays are at hand on one device, kernels are fitted in batches, those of one source
    together, so that little more memory is taken than for the result. Of the variance rule a few
    programs serve a batch; of any other, one is compiled for each combination of shapes, and kept
    for other plans. Where anything is traced or divided over several devices, all is one program,
    in which pairs of equal shapes are one batch.

    Args:
      plan: from `plan_transfer`, for trees of these shapes.
      key: random key, consumed.
      src_params: the source's parameters.
      dst_params: the target's own parameters; not written to.
      check_finite: refuse NaN and infinity in the source. Cannot be checked, and is not, where the
        source is traced.

    Returns:
      A new tree of the structure, shapes and dtypes of `dst_params`.

    Raises:
      PlanMismatchError: if a leaf that the plan names is missing or of another shape.
      NonFiniteSourceError: if a source leaf that the plan reads is not finite.
    """
    source = _named(plan.source_leaves, src_params, "src_params")
    target = _named(plan.target_leaves, dst_params, "dst_params")
    arrays = [key, *source.values(), *target.values()]
    if any(isinstance(array, Tracer) or _is_divided(array) for array in arrays):
        finite = finite_sums(source) if check_finite else {}
        fitted = _fit_in_one_program(plan, _shardings(target), key, source, target)
        refuse_unless_finite(source, finite)
    else:
        fitted = _fit_in_batches(plan, key, source, target, check_finite=check_finite)

    def replace(keys: tuple[Any, ...], leaf: Any) -> Any:
        return fitted.get(leaf_path(keys), leaf) if is_array(leaf) else leaf

    return jax.tree_util.tree_map_with_path(replace, dst_params)


def _is_divided(array: Any) -> bool:
    return isinstance(array, Array) and len(array.sharding.device_set) > 1


Shardings = tuple[tuple[str, jax.sharding.Sharding], ...]


def _shardings(leaves: Leaves) -> Shardings:
    """How the leaves are laid out that lie on several devices."""
    return tuple(
        (path, leaf.sharding)
        for path, leaf in leaves.items()
        if not isinstance(leaf, Tracer) and _is_divided(leaf)
    )


def _fit_in_batches(
    plan: TransferPlan, key: Array, source: Leaves, target: Leaves, *, check_finite: bool
) -> Leaves:
    """Returns the replaced leaves of the target by path."""
    # Once: a source may serve many targets, and NumPy's arrays would be moved for each.
    source, target = (
        {path: leaf if isinstance(leaf, Array) else jnp.asarray(leaf) for path, leaf in s.items()}
        for s in (source, target)
    )
    fitted = dict(target)
    finite: dict[str, Array] = {}
    key_type, keys = layer_keys(key, _drawing_layers(plan))

    def check(paths: Iterable[str]) -> None:
        unchecked = {path: source[path] for path in paths if path not in finite}
        if check_finite and unchecked:
            finite.update(finite_sums(unchecked))

    def load(pairs: Sequence[LayerPair]) -> rules.Batch:
        layers = list(dict.fromkeys(pair.source for pair in pairs))
        # Batch by batch, while the host is busy with the last one; answers are awaited at the end.
        check(layer.weight for layer in layers)
        return rules.Batch(
            np.stack([keys[pair.target.path] for pair in pairs]),
            [stored_kernel(layer, source) for layer in layers],
            tuple(layers.index(pair.source) for pair in pairs),
            [stored_kernel(pair.target, target) for pair in pairs],
        )

    batches = _batches(_kernel_pairs(plan))
    fitting = rules.fit_batches(plan.rule, key_type, map(load, batches))
    for pair, kernel in zip(itertools.chain(*batches), fitting, strict=True):
        if plan.rescale != "none":
            kernel = _rescaled(kernel, stored_kernel(pair.source, source), plan.rescale)
        store_kernel(pair.target, kernel, fitted)
    fitted |= _fit_rest(plan, key_type, keys, source, target)
    if check_finite and plan.drawn:
        # Drawn from the mean of these: it is not finite if one of them is not. Dense layers may be
        # most of a source, and to read them once more takes as long as all else.
        weight = plan.drawn[0].weight
        pooled = (layer.weight for layer in plan.drawn_from if not layer.index)
        finite = dict.fromkeys(pooled, finite_sums({weight: fitted[weight]})[weight]) | finite
    check(source)
    refuse_unless_finite(source, finite)
    return fitted


def _batches(pairs: Sequence[LayerPair]) -> list[list[LayerPair]]:
    """Pairs that are fitted together; all of one source, since it is measured for them."""
    by_source = defaultdict(list)
    for pair in pairs:
        by_source[pair.source].append(pair)
    limit = sum(math.prod(pair.target.shape) for pair in pairs) / BATCHES
    batches: list[list[LayerPair]] = []
    weights = math.inf
    for group in by_source.values():
        if weights >= limit:
            batches.append([])
            weights = 0
        batches[-1] += group
        weights += sum(math.prod(pair.target.shape) for pair in group)
    return batches


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_in_one_program(
    plan: TransferPlan, shardings: Shardings, key: Array, source: Leaves, target: Leaves
) -> Leaves:
    """Likewise, laid out as the leaves of the target."""
    fitted = dict(target)
    key_type, keys = layer_keys(key, _drawing_layers(plan))
    rule = functools.partial(rules.call, plan.rule, key_type)
    batches = defaultdict(list)
    for pair in _kernel_pairs(plan):
        batches[pair.source.shape, pair.target.shape].append(pair)
    for pairs in batches.values():
        stacked = [
            jnp.stack([keys[pair.target.path] for pair in pairs]),
            jnp.stack([stored_kernel(pair.source, source) for pair in pairs]),
            jnp.stack([stored_kernel(pair.target, target) for pair in pairs]),
        ]
        kernels = jax.vmap(functools.partial(_fit, rule, plan.rescale))(*stacked)
        for pair, kernel in zip(pairs, kernels, strict=True):
            store_kernel(pair.target, kernel, fitted)
    fitted |= _fit_rest(plan, key_type, keys, source, target)
    # Asked for within the program: else a device may hold whole kernels before they are divided.
    for path, sharding in shardings:
        fitted[path] = jax.lax.with_sharding_constraint(fitted[path], sharding)
    return fitted


def _drawing_layers(plan: TransferPlan) -> list[str]:
    """The paths of the layers that need a key."""
    layers = (*(pair.target for pair in plan.layer_pairs), *plan.drawn)
    return list(dict.fromkeys(layer.path for layer in layers))


def _kernel_pairs(plan: TransferPlan) -> list[LayerPair]:
    """The pairs whose kernels are fitted by themselves."""
    pairs = () if plan.channels else plan.layer_pairs
    return [pair for pair in pairs if pair.target.kind != "norm"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_rest(
    plan: TransferPlan,
    key_type: Hashable,
    words: Mapping[str, Array],
    source: Leaves,
    target: Leaves,
) -> Leaves:
    """Fits norms, vectors and drawn layers, and with consistent channels all; returns these."""
    fitted = dict(target)
    keys = {path: typed_key(word, key_type) for path, word in words.items()}
    if plan.channels is not None:
        _fit_consistently(plan, plan.channels, keys, source, target, fitted)
    for pair in () if plan.channels else plan.layer_pairs:
        if pair.target.kind == "norm":
            scales = stored_kernel(pair.source, source), stored_kernel(pair.target, target)
            store_kernel(pair.target, rules.clip(keys[pair.target.path], *scales), fitted)
        for source_path, path in fitted_vectors(pair, plan.biases):
            given = stored_vector(pair.source, source_path, source)
            own = stored_vector(pair.target, path, target)
            vector = rules.clip(keys[pair.target.path], given, own)
            store_vector(pair.target, path, vector, fitted)
    if plan.drawn:
        pooled = [stored_kernel(layer, source) for layer in plan.drawn_from]
        mean, spread = heads.pooled_statistics(pooled, len(plan.drawn))
        for layer in plan.drawn:
            kernel = stored_kernel(layer, target)
            store_kernel(layer, heads.draw_dense(keys[layer.path], kernel, mean, spread), fitted)
            for name, path in layer.vectors:
                if name == "bias":
                    zeros = jnp.zeros_like(stored_vector(layer, path, target))
                    store_vector(layer, path, zeros, fitted)
    for entry in plan.inserted:
        if entry.role == "identity" and entry.layer.kind != "norm":
            store_kernel(entry.layer, identity_kernel(entry.layer.shape), fitted)
        fitted |= {path: jnp.full_like(target[path], value) for path, value in entry.constants}
    return {path: leaf for path, leaf in fitted.items() if leaf is not target[path]}


def _fit_consistently(
    plan: TransferPlan,
    channels: ChannelPlan,
    keys: Mapping[str, Array],
    source: Leaves,
    target: Leaves,
    fitted: Leaves,
) -> None:
    """Fits all pairs with the channels that were chosen for all of them together."""
    kernels = {
        pair.source.path: stored_kernel(pair.source, source)
        for pair in plan.layer_pairs
        if pair.source.kind != "norm"
    }
    kept = kept_channels(channels, kernels)
    known = {layer.target: layer for layer in channels.layers}
    for pair in plan.layer_pairs:
        layer = known.get(pair.target.path)
        if layer is None:  # not met by the trace: nothing is known of its channels
            continue
        if pair.target.kind == "norm":
            scale = stored_kernel(pair.target, target)
            own = own_places(jnp.ones(pair.source.shape[0]), len(scale), "first")
            writes = axis_places(layer.writes, kept, own)
            given = stored_kernel(pair.source, source)
            store_kernel(pair.target, take_vector(given, writes, scale), fitted)
        else:
            kernel = stored_kernel(pair.target, target)
            given, writes = _consistent_kernel(
                plan, channels, layer, kept, keys[pair.target.path], kernels, pair, kernel
            )
            store_kernel(pair.target, given, fitted)
        for source_path, path in fitted_vectors(pair, plan.biases):
            given = stored_vector(pair.source, source_path, source)
            own = stored_vector(pair.target, path, target)
            store_vector(pair.target, path, take_vector(given, writes, own), fitted)


def _consistent_kernel(
    plan: TransferPlan,
    channels: ChannelPlan,
    layer: LayerChannels,
    kept: Sequence[Array],
    key: Array,
    kernels: Mapping[str, Array],
    pair: LayerPair,
    target: Array,
) -> tuple[Array, Array]:
    """The kernel of one pair, and where along the source's outputs its own stand."""
    source = kernels[pair.source.path]
    inputs, outputs = target.shape[-2:]
    weight = jnp.abs(source.astype(jnp.float32)).sum(tuple(range(source.ndim - 2)))  # [I, O]
    own_reads = own_places(
        jnp.tile(weight.sum(1), layer.source_groups),
        inputs * layer.target_groups,
        "first" if layer.source_groups > 1 else channels.rank,
    )
    reads = axis_places(layer.reads, kept, own_reads)
    writes = axis_places(layer.writes, kept, own_places(weight.sum(0), outputs, channels.rank))
    given, inside = gather_kernel(layer, reads, writes, source, (inputs, outputs))
    if channels.grow == "copy" and layer.target_groups == 1:
        copies = copies_of(reads, source.shape[-2] * layer.source_groups)
        columns = copies.reshape((1,) * (given.ndim - 2) + (-1, 1))
        given = (given / columns).astype(source.dtype)
    new = _fit(plan.rule, plan.rescale, key, given, target)
    return jnp.where(inside, new, target), writes


def _fit(rule: Rule, rescale: str, key: Array, source: Array, target: Array) -> Array:
    """One kernel by a rule, at the scale that the plan asks for."""
    fitted = rule(key, source, target)
    return fitted if rescale == "none" else _rescaled(fitted, source, rescale)


@functools.partial(jax.jit, static_argnums=2)
def _rescaled(fitted: Array, source: Array, rescale: str) -> Array:
    wanted: Any = math.sqrt(2 / math.prod(fitted.shape[:-1]))
    if rescale == "source":
        wanted = jnp.std(source.astype(jnp.float32))
    spread = jnp.std(fitted.astype(jnp.float32))
    # A kernel of equal weights has no spread that could be changed.
    factor = jnp.where(spread > 0, wanted / jnp.where(spread > 0, spread, 1.0), 1.0)
    return (fitted * factor).astype(fitted.dtype)


def _named(expected: tuple[tuple[str, tuple[int, ...]], ...], tree: PyTree, name: str) -> Leaves:
    """The leaves of a tree that a plan names, checked against the shapes that it was made for."""
    leaves = array_leaves(tree, name=name)
    for path, shape in expected:
        found = tuple(leaves[path].shape) if path in leaves else "no such leaf"
        if found != shape:
            raise PlanMismatchError(
                f"{name}: the plan expects leaf {path!r} of shape {shape}, found {found}. Make a "
                "plan for these very trees with plan_transfer(src_params, dst_params)."
            )
    return {path: leaves[path] for path, _ in expected}
