"""Carry a plan out on leaves by path: the same code in NumPy and in `jax.numpy`."""

import functools
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax import rules
from tlv_jax.consistent.apply import (
    choose_kernel,
    identity_kernel,
    kept_channels,
    norm_places,
    take_places,
)
from tlv_jax.consistent.insert import IDENTITY
from tlv_jax.consistent.plan import ChannelPlan
from tlv_jax.leaves import Leaves, put_kernel, put_vector, take_kernel, take_vector
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import fitted_vectors, settled_counts
from tlv_jax.rules.copying import paste
from tlv_jax.rules.dense import draw_dense, pooled_statistics
from tlv_jax.types import LayerPair, Rule


def fit_leaves(
    plan: TransferPlan,
    key: Any,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    xp: ModuleType,
) -> Leaves:
    """Fits all that a plan carries over.

    Args:
      plan: for trees of these leaves.
      key: random key, consumed. Each layer draws from a key folded with a hash of its path.
      source: the leaves that the plan reads, by path.
      target: the leaves that it replaces, by path; not written to.
      xp: NumPy, of which all leaves are then, or `jax.numpy`.

    Returns:
      The replaced leaves of the target by path.
    """
    fitted = dict(target)

    def key_of(path: str) -> Any:
        # A hash that is the same in every process, which Python's own is not.
        return jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))

    _settle_averages(plan, fitted, xp)
    if plan.channels is None:
        _fit_kernels(plan, key_of, source, fitted, xp)
        _fit_vectors(plan, source, fitted)
    else:
        _fit_consistently(plan, plan.channels, key_of, source, fitted, xp)
    _draw_heads(plan, key_of, source, fitted, xp)
    _fill_inserted(plan, fitted, xp)
    return fitted


def _settle_averages(plan: TransferPlan, fitted: Leaves, xp: ModuleType) -> None:
    """Lets averages that a counter debiases count as those of many batches, as the source's are."""
    for pair in plan.layer_pairs:
        for path in settled_counts(pair):
            var = dict(pair.target.vectors)["var"]
            # Of no batches yet it is zero, by which the channels without a source would be divided.
            fitted[var] = xp.where(fitted[path] == 0, xp.ones_like(fitted[var]), fitted[var])
            fitted[path] = xp.full_like(fitted[path], IDENTITY["count"])


def _fit_kernels(
    plan: TransferPlan,
    key_of: Callable[[str], Any],
    source: Mapping[str, Any],
    fitted: Leaves,
    xp: ModuleType,
) -> None:
    """Fits the kernels of all pairs, each by itself."""
    pairs = [pair for pair in plan.layer_pairs if pair.target.kind != "norm"]
    if xp is np:
        for pair in pairs:
            kernels = take_kernel(pair.source, source), take_kernel(pair.target, fitted)
            kernel = _fit(plan.rule, plan.rescale, xp, key_of(pair.target.path), *kernels)
            put_kernel(pair.target, kernel, fitted)
        return
    # Traced, pairs of equal shapes are one operation: a program of a tenth of the size.
    alike: dict[Any, list[LayerPair]] = defaultdict(list)
    for pair in pairs:
        types = source[pair.source.weight].dtype, fitted[pair.target.weight].dtype
        alike[pair.source.shape, pair.target.shape, types].append(pair)
    for group in alike.values():
        keys = jnp.stack([key_of(pair.target.path) for pair in group])
        given = jnp.stack([take_kernel(pair.source, source) for pair in group])
        own = jnp.stack([take_kernel(pair.target, fitted) for pair in group])
        fit = jax.vmap(functools.partial(_fit, plan.rule, plan.rescale, xp))
        for pair, kernel in zip(group, fit(keys, given, own), strict=True):
            put_kernel(pair.target, kernel, fitted)


def _fit(rule: Rule, rescale: str, xp: ModuleType, key: Any, source: Any, target: Any) -> Any:
    """One kernel by a rule, at the scale that the plan asks for."""
    if xp is np and type(rule) not in rules.LIBRARY:
        # A user's rule is written for JAX's arrays.
        kernel = np.asarray(rule(key, jnp.asarray(source), jnp.asarray(target)))
    else:
        kernel = rule(key, source, target)
    if rescale == "none":
        return kernel
    wanted = math.sqrt(2 / math.prod(kernel.shape[:-1]))
    if rescale == "source":
        wanted = xp.std(source.astype(np.float32, copy=False))
    spread = xp.std(kernel.astype(np.float32, copy=False))
    # A kernel of equal weights has no spread that could be changed, whatever the rounding says.
    varies = (spread > 0) & (kernel.max() > kernel.min())
    factor = xp.where(varies, wanted / xp.where(varies, spread, 1.0), 1.0)
    return (kernel * factor).astype(kernel.dtype)


def _fit_vectors(plan: TransferPlan, source: Mapping[str, Any], fitted: Leaves) -> None:
    """Fits norms, and the vectors of all layers, by clipping."""
    for pair in plan.layer_pairs:
        if pair.target.kind == "norm":
            given, own = take_kernel(pair.source, source), take_kernel(pair.target, fitted)
            put_kernel(pair.target, paste(given, own, [True]), fitted)
        for source_path, path in fitted_vectors(pair, plan.biases):
            given = take_vector(pair.source, source_path, source)
            own = take_vector(pair.target, path, fitted)
            put_vector(pair.target, path, paste(given, own, [True]), fitted)


def _fit_consistently(
    plan: TransferPlan,
    channels: ChannelPlan,
    key_of: Callable[[str], Any],
    source: Mapping[str, Any],
    fitted: Leaves,
    xp: ModuleType,
) -> None:
    """Fits all pairs with the channels that were chosen for all of them together."""
    kernels = {
        pair.source.path: take_kernel(pair.source, source)
        for pair in plan.layer_pairs
        if pair.source.kind != "norm"
    }
    kept = kept_channels(channels, kernels, xp)
    chosen = {layer.target: layer for layer in channels.layers}
    for pair in plan.layer_pairs:
        layer = chosen[pair.target.path]
        own = take_kernel(pair.target, fitted)
        if pair.target.kind == "norm":
            given = take_kernel(pair.source, source)
            writes = norm_places(layer, kept, len(given), len(own), xp)
            put_kernel(pair.target, take_places(given, writes, own, xp), fitted)
        else:
            kernel = kernels[pair.source.path]
            given, inside, writes = choose_kernel(channels, layer, kept, kernel, own.shape, xp)
            key = key_of(pair.target.path)
            new = _fit(plan.rule, plan.rescale, xp, key, given, own)
            put_kernel(pair.target, xp.where(inside, new, own), fitted)
        for source_path, path in fitted_vectors(pair, plan.biases):
            given = take_vector(pair.source, source_path, source)
            own = take_vector(pair.target, path, fitted)
            put_vector(pair.target, path, take_places(given, writes, own, xp), fitted)


def _draw_heads(
    plan: TransferPlan,
    key_of: Callable[[str], Any],
    source: Mapping[str, Any],
    fitted: Leaves,
    xp: ModuleType,
) -> None:
    """Draws the dense layers that the plan gives the source's statistics."""
    if not plan.drawn:
        return
    pooled: Sequence[Any] = [take_kernel(layer, source) for layer in plan.drawn_from]
    mean, spread = pooled_statistics(pooled, len(plan.drawn), xp)
    for layer in plan.drawn:
        kernel = take_kernel(layer, fitted)
        put_kernel(layer, draw_dense(key_of(layer.path), kernel, mean, spread, xp), fitted)
        for name, path in layer.vectors:
            if name == "bias":
                put_vector(layer, path, xp.zeros_like(take_vector(layer, path, fitted)), fitted)


def _fill_inserted(plan: TransferPlan, fitted: Leaves, xp: ModuleType) -> None:
    """Makes layers without a source change nothing."""
    for entry in plan.inserted:
        if entry.role == "identity" and entry.layer.kind != "norm":
            put_kernel(entry.layer, xp.asarray(identity_kernel(entry.layer.shape)), fitted)
        for path, value in entry.constants:
            fitted[path] = xp.full_like(fitted[path], value)
