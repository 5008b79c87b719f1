"""Fit all that a plan carries over, of leaves by path: in batches, or in one program."""

import functools
import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from tlv_jax.finiteness import refuse_unless_finite, sums
from tlv_jax.layer_keys import layer_keys, typed_key
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import fitted_vectors
from tlv_jax.stored import (
    described_kernel,
    store_kernel,
    store_vector,
    stored_kernel,
    stored_vector,
)
from tlv_jax.types import Array, Layer, LayerPair, Rule

__all__ = ["Leaves", "Shardings", "fit_in_batches", "fit_in_one_program"]

Leaves = dict[str, Any]
Shardings = tuple[tuple[str, jax.sharding.Sharding], ...]
# Fewer batches are fewer programs, but each waits for the one before: below these it gains nothing.
BATCHES = 12  # at least, that kernels are divided into
WEIGHTS = 1 << 21  # of targets: to a batch that has as many no source is added


def fit_in_batches(
    plan: TransferPlan, key: Array, source: Leaves, target: Leaves, *, check_finite: bool
) -> Leaves:
    """Fits leaves that lie on one device, and of which none is traced.

    Args:
      plan: for trees of these leaves.
      key: random key, consumed.
      source: the leaves that the plan reads, by path.
      target: the leaves that it replaces, by path; not written to.
      check_finite: refuse NaN and infinity in the source.

    Returns:
      The replaced leaves of the target by path.

    Raises:
      NonFiniteSourceError: with `check_finite`, if a leaf of the source is not finite.
    """
    # Once: a source may serve many targets, and NumPy's arrays would be moved for each.
    source, target = (
        {path: leaf if isinstance(leaf, Array) else jnp.asarray(leaf) for path, leaf in s.items()}
        for s in (source, target)
    )
    fitted = dict(target)
    key_type, keys = layer_keys(key, _drawing_layers(plan))

    def batch_of(groups: Sequence[Sequence[LayerPair]]) -> rules.Batch:
        sources = [group[0].source for group in groups]
        targets = [pair.target for pair in itertools.chain(*groups)]
        return rules.Batch(
            tuple((layer.shape, source[layer.weight].dtype) for layer in sources),
            tuple(number for number, group in enumerate(groups) for _ in group),
            tuple((layer.shape, target[layer.weight].dtype) for layer in targets),
            lambda: (
                [stored_kernel(layer, source) for layer in sources],
                [stored_kernel(layer, target) for layer in targets],
            ),
            lambda: (
                [described_kernel(layer, source) for layer in sources],
                [described_kernel(layer, target) for layer in targets],
            ),
        )

    evidence: list[tuple[Layer, Array]] = []  # of being finite; awaited at the end
    kernel_pairs = _kernel_pairs(plan)
    # First: what a head takes to be drawn lies where the results of all others will.
    if target.keys() - {pair.target.weight for pair in kernel_pairs}:
        fitted |= _fit_rest(plan, key_type, keys, source, target)
    divided = _batches(kernel_pairs)
    words = [keys[pair.target.path] for groups in divided for group in groups for pair in group]
    batches = list(map(batch_of, divided))
    fitting = rules.fit_batches(
        plan.rule, key_type, np.array(words), batches, check_finite=check_finite
    )
    for groups, batch in zip(divided, fitting, strict=True):
        for pair, kernel in zip(itertools.chain(*groups), batch.kernels, strict=True):
            if plan.rescale != "none":
                kernel = _rescaled(kernel, stored_kernel(pair.source, source), plan.rescale)
            store_kernel(pair.target, kernel, fitted)
        if check_finite:
            evidence += zip((group[0].source for group in groups), batch.evidence, strict=True)
    if not check_finite:
        return fitted
    if plan.drawn:
        # Drawn from the mean of these: it is not finite if one of them is not. Dense layers may be
        # most of a source, and to read them once more takes as long as all else.
        (drawn,) = sums([fitted[plan.drawn[0].weight]])
        evidence += ((layer, drawn) for layer in plan.drawn_from)
    whole = {layer.weight for layer, _ in evidence if not layer.index}
    rest = [path for path in source if path not in whole]
    found = sums([source[path] for path in rest])
    refuse_unless_finite(source, zip(rest, found, strict=True))
    refuse_unless_finite(source, ((layer.weight, shown) for layer, shown in evidence))
    return fitted


def _batches(pairs: Sequence[LayerPair]) -> list[list[list[LayerPair]]]:
    """Pairs that are fitted together, in groups of one source, which is measured for them."""
    by_source = defaultdict(list)
    for pair in pairs:
        by_source[pair.source].append(pair)
    sized = [(sum(math.prod(p.target.shape) for p in group), group) for group in by_source.values()]
    # Likewise the largest.
    sized.sort(key=operator.itemgetter(0), reverse=True)
    limit = min(sum(size for size, _ in sized) / BATCHES, WEIGHTS)
    batches: list[list[list[LayerPair]]] = []
    weights = math.inf
    for size, group in sized:
        if weights >= limit:
            batches.append([])
            weights = 0
        batches[-1].append(group)
        weights += size
    return batches


@functools.partial(jax.jit, static_argnums=(0, 1))
def fit_in_one_program(
    plan: TransferPlan, shardings: Shardings, key: Array, source: Leaves, target: Leaves
) -> Leaves:
    """Fits leaves that are traced, or divided over several devices, pairs of equal shapes at once.

    Args:
      plan: for trees of these leaves.
      shardings: of the leaves of the target that are divided, by path; so will the new ones be.
      key: random key, consumed.
      source: the leaves that the plan reads, by path.
      target: the leaves that it replaces, by path.

    Returns:
      The replaced leaves of the target by path.
    """
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
