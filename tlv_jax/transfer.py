"""Carry out a plan on arrays."""

import functools
import math
import warnings
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from tlv_jax.errors import NonFiniteSourceError, PlanMismatchError
from tlv_jax.paths import array_leaves, is_array, leaf_path
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import fitted_vectors, plan_transfer
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.types import Array, Layer, LayerPair, PyTree

__all__ = ["apply_transfer", "stored_kernel", "transfer"]

Leaves = dict[str, Any]
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
    other layers are in the plan. Pairs of equal shapes are fitted in one batch, so that compile
    time grows with the number of distinct shapes.

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
    if check_finite:
        _check_finite(source)
    fitted = _fit_leaves(plan, _shardings(target), key, source, target)

    def replace(keys: tuple[Any, ...], leaf: Any) -> Any:
        return fitted.get(leaf_path(keys), leaf) if is_array(leaf) else leaf

    return jax.tree_util.tree_map_with_path(replace, dst_params)


Shardings = tuple[tuple[str, jax.sharding.Sharding], ...]


def _shardings(leaves: Leaves) -> Shardings:
    """How the leaves are laid out that lie on several devices."""
    return tuple(
        (path, leaf.sharding)
        for path, leaf in leaves.items()
        if isinstance(leaf, Array)
        and not isinstance(leaf, Tracer)
        and len(leaf.sharding.device_set) > 1
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_leaves(
    plan: TransferPlan, shardings: Shardings, key: Array, source: Leaves, target: Leaves
) -> Leaves:
    """Returns the replaced leaves of the target by path, laid out as those of the target."""
    fitted = dict(target)
    layer_keys = _layer_keys(key, plan)
    if plan.channels is not None:
        _fit_consistently(plan, plan.channels, layer_keys, source, target, fitted)
    for pairs in [] if plan.channels else _batches(plan):
        keys = jnp.stack([layer_keys[pair.target.path] for pair in pairs])
        sources = jnp.stack([stored_kernel(pair.source, source) for pair in pairs])
        targets = jnp.stack([stored_kernel(pair.target, target) for pair in pairs])
        norms = pairs[0].target.kind == "norm"
        rule = rules.clip if norms else functools.partial(_fit, plan)
        for pair, kernel in zip(pairs, jax.vmap(rule)(keys, sources, targets), strict=True):
            _store(pair.target, kernel, fitted)
    for pair in () if plan.channels else plan.layer_pairs:
        for source_path, path in fitted_vectors(pair, plan.biases):
            # Reshaped, since Equinox keeps a bias as [O, 1, 1].
            vector = rules.clip(key, source[source_path].reshape(-1), target[path].reshape(-1))
            fitted[path] = vector.reshape(target[path].shape)
    if plan.drawn:
        pooled = [stored_kernel(layer, source) for layer in plan.drawn_from]
        mean, spread = heads.pooled_statistics(pooled, len(plan.drawn))
        for layer in plan.drawn:
            kernel = stored_kernel(layer, target)
            kernel = heads.draw_dense(layer_keys[layer.path], kernel, mean, spread)
            _store(layer, kernel, fitted)
            for name, path in layer.vectors:
                if name == "bias":
                    fitted[path] = jnp.zeros_like(target[path])
    # Asked for within the program: else a device may hold whole kernels before they are divided.
    for path, sharding in shardings:
        fitted[path] = jax.lax.with_sharding_constraint(fitted[path], sharding)
    return fitted


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
            _store(pair.target, take_vector(given, writes, scale), fitted)
        else:
            kernel = stored_kernel(pair.target, target)
            given, writes = _consistent_kernel(
                plan, channels, layer, kept, keys[pair.target.path], kernels, pair, kernel
            )
            _store(pair.target, given, fitted)
        for source_path, path in fitted_vectors(pair, plan.biases):
            own_vector = target[path].reshape(-1)
            vector = take_vector(source[source_path].reshape(-1), writes, own_vector)
            fitted[path] = vector.reshape(target[path].shape)


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
    new = _fit(plan, key, given, target)
    return jnp.where(inside, new, target), writes


def _fit(plan: TransferPlan, key: Array, source: Array, target: Array) -> Array:
    """One kernel by the plan's rule, at the scale that the plan asks for."""
    fitted = plan.rule(key, source, target)
    if plan.rescale == "none":
        return fitted
    wanted = math.sqrt(2 / math.prod(target.shape[:-1]))
    if plan.rescale == "source":
        wanted = jnp.std(source.astype(jnp.float32))
    spread = jnp.std(fitted.astype(jnp.float32))
    # A kernel of equal weights has no spread that could be changed.
    factor = jnp.where(spread > 0, wanted / jnp.where(spread > 0, spread, 1.0), 1.0)
    return (fitted * factor).astype(fitted.dtype)


def _batches(plan: TransferPlan) -> list[list[LayerPair]]:
    """Groups the pairs whose fitting is the same program."""
    batches = defaultdict(list)
    for pair in plan.layer_pairs:
        batches[pair.source.shape, pair.target.shape, pair.target.kind].append(pair)
    return list(batches.values())


def stored_kernel(layer: Layer, leaves: Mapping[str, Array]) -> Array:
    """Takes a layer's kernel out of its leaf, `[*spatial, I, O]`, of a norm its scale `[C]`."""
    stored = jnp.asarray(leaves[layer.weight])[layer.index]
    return stored.transpose(layer.axes).reshape(layer.shape)


def _store(layer: Layer, kernel: Array, leaves: Leaves) -> None:
    """Puts a kernel back as its leaf stores it; the inverse of `stored_kernel`."""
    leaf = leaves[layer.weight]
    permuted = tuple(leaf.shape[len(layer.index) :][axis] for axis in layer.axes)
    stored = kernel.reshape(permuted).transpose(np.argsort(layer.axes)).astype(leaf.dtype)
    leaves[layer.weight] = leaf.at[layer.index].set(stored) if layer.index else stored


def _layer_keys(key: Array, plan: TransferPlan) -> dict[str, Array]:
    """A key for each target layer, from a hash of its path that is the same in every process."""
    paths = [layer.path for layer in (*(pair.target for pair in plan.layer_pairs), *plan.drawn)]
    hashes = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, hashes)
    return dict(zip(paths, keys, strict=True))


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


def _check_finite(source: Leaves) -> None:
    concrete = {path: leaf for path, leaf in source.items() if not isinstance(leaf, Tracer)}
    for path, finite in jax.device_get(_all_finite(concrete)).items():
        if not finite:
            count = int(jnp.sum(~jnp.isfinite(source[path])))
            raise NonFiniteSourceError(
                f"src_params: leaf {path!r} has {count} values that are NaN or infinite; a "
                "transfer would spread them. Load the checkpoint again, or pass "
                "check_finite=False to apply_transfer to carry them over."
            )


@jax.jit
def _all_finite(leaves: Leaves) -> dict[str, Array]:
    return {path: jnp.all(jnp.isfinite(leaf)) for path, leaf in leaves.items()}
