"""Apply a plan to leaves by path: the same code in NumPy and in `jax.numpy`.

Leaves are arrays by path. A layer's kernel may be stored with other axes, or as one of a stack.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax import rules
from tlv_jax.arrays import layer_key, replace
from tlv_jax.consistent.apply import (
    axis_places,
    choose_kernel,
    identity_kernel,
    kept_channels,
    take_places,
)
from tlv_jax.consistent.insert import IDENTITY
from tlv_jax.consistent.plan import ChannelPlan
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import fitted_vectors, settled_counts
from tlv_jax.rules.axes import change_axes
from tlv_jax.rules.copying import paste
from tlv_jax.rules.dense import draw_dense, pooled_statistics
from tlv_jax.types import Layer, LayerPair

Leaves = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """One application of a plan; `fitted` begins as the target's leaves and is filled in."""

    plan: TransferPlan
    key: Any
    source: Mapping[str, Any]
    fitted: Leaves
    xp: ModuleType  # NumPy, if all leaves are NumPy arrays, or `jax.numpy`

    def key_of(self, layer: Layer) -> Any:
        """The layer's own random key."""
        return layer_key(self.key, layer.path)

    def kernels(self, pair: LayerPair) -> tuple[Any, Any]:
        """The source's kernel, with as many axes as the target's, and the target's own."""
        given, own = take_kernel(pair.source, self.source), take_kernel(pair.target, self.fitted)
        if pair.target.kind != "norm":
            given = change_axes(given, own.shape[:-2], self.xp)
        return given, own


def fit_leaves(
    plan: TransferPlan,
    key: Any,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    xp: ModuleType,
) -> Leaves:
    """Fits all leaves that a plan replaces, and returns them by path; writes to none."""
    job = _Fitting(plan, key, source, dict(target), xp)
    _settle_averages(job)
    if plan.channels is None:
        _fit_kernels(job)
        for pair in plan.layer_pairs:
            _fit_vectors(job, pair, paste)
    else:
        _fit_consistently(job, plan.channels)
    _draw_heads(job)
    _fill_inserted(job)
    return job.fitted


def _settle_averages(job: _Fitting) -> None:
    """Makes debiased averages count as averages of many batches, as the source's are."""
    for pair in job.plan.layer_pairs:
        for path in settled_counts(pair):
            var = dict(pair.target.vectors)["var"]
            # Without batches it is zero, and channels without a source would divide by it.
            ones = job.xp.ones_like(job.fitted[var])
            job.fitted[var] = job.xp.where(job.fitted[path] == 0, ones, job.fitted[var])
            job.fitted[path] = job.xp.full_like(job.fitted[path], IDENTITY["count"])


def _fit_kernels(job: _Fitting) -> None:
    """Fits the kernels of all pairs, each by itself."""
    pairs = [pair for pair in job.plan.layer_pairs if pair.target.kind != "norm"]
    if job.xp is np:
        for pair in pairs:
            kernel = _fit(job, job.key_of(pair.target), *job.kernels(pair))
            put_kernel(pair.target, kernel, job.fitted)
        return
    # When traced, pairs of equal shapes are one operation: the program is ten times smaller.
    alike: dict[Any, list[LayerPair]] = defaultdict(list)
    for pair in pairs:
        types = job.source[pair.source.weight].dtype, job.fitted[pair.target.weight].dtype
        alike[pair.source.shape, pair.target.shape, types].append(pair)
    for group in alike.values():
        keys = jnp.stack([job.key_of(pair.target) for pair in group])
        given, own = map(jnp.stack, zip(*(job.kernels(pair) for pair in group), strict=True))
        kernels = jax.vmap(functools.partial(_fit, job))(keys, given, own)
        for pair, kernel in zip(group, kernels, strict=True):
            put_kernel(pair.target, kernel, job.fitted)


def _fit(job: _Fitting, key: Any, source: Any, target: Any) -> Any:
    """Fits one kernel by the rule, and rescales it."""
    rule, rescale, xp = job.plan.rule, job.plan.rescale, job.xp
    if xp is np and type(rule) not in rules.LIBRARY:
        # A user's rule is written for JAX arrays.
        kernel = np.asarray(rule(key, jnp.asarray(source), jnp.asarray(target)))
    else:
        kernel = rule(key, source, target)
    if rescale == "none":
        return kernel
    wanted = math.sqrt(2 / math.prod(kernel.shape[:-1]))
    if rescale == "source":
        wanted = xp.std(source.astype(np.float32, copy=False))
    spread = xp.std(kernel.astype(np.float32, copy=False))
    # A kernel of equal weights has no spread to change, whatever rounding says.
    varies = (spread > 0) & (kernel.max() > kernel.min())
    factor = xp.where(varies, wanted / xp.where(varies, spread, 1.0), 1.0)
    return (kernel * factor).astype(kernel.dtype)


def _fit_vectors(job: _Fitting, pair: LayerPair, place: Callable[[Any, Any], Any]) -> None:
    """Fits the scale of a norm, and the vectors of any layer, by `place(given, own)`."""
    if pair.target.kind == "norm":
        put_kernel(pair.target, place(*job.kernels(pair)), job.fitted)
    for source_path, path in fitted_vectors(pair, job.plan.biases):
        given = take_vector(pair.source, source_path, job.source)
        own = take_vector(pair.target, path, job.fitted)
        put_vector(pair.target, path, place(given, own), job.fitted)


def _fit_consistently(job: _Fitting, channels: ChannelPlan) -> None:
    """Fits all pairs, with channels chosen for all of them together."""
    xp, pairs = job.xp, job.plan.layer_pairs
    sources = [pair.source for pair in pairs if pair.source.kind != "norm"]
    kernels = {layer.path: take_kernel(layer, job.source) for layer in sources}
    kept = kept_channels(channels, kernels, xp)
    for pair, layer in zip(pairs, channels.layers, strict=True):
        given, own = job.kernels(pair)
        if pair.target.kind == "norm":
            writes = axis_places(layer.writes, kept, None, xp)
        else:
            given, inside, writes = choose_kernel(channels, pair, layer, kept, given, xp)
            new = _fit(job, job.key_of(pair.target), given, own)
            put_kernel(pair.target, xp.where(inside, new, own), job.fitted)
        _fit_vectors(job, pair, functools.partial(take_places, xp=xp, places=writes))


def _draw_heads(job: _Fitting) -> None:
    """Draws dense layers from the statistics of the source's."""
    if not job.plan.drawn:
        return
    pooled = [take_kernel(layer, job.source) for layer in job.plan.drawn_from]
    mean, spread = pooled_statistics(pooled, len(job.plan.drawn), job.xp)
    for layer in job.plan.drawn:
        kernel = take_kernel(layer, job.fitted)
        put_kernel(layer, draw_dense(job.key_of(layer), kernel, mean, spread, job.xp), job.fitted)
        if "bias" in (vectors := dict(layer.vectors)):
            zeros = job.xp.zeros(layer.shape[-1])
            put_vector(layer, vectors["bias"], zeros, job.fitted)


def _fill_inserted(job: _Fitting) -> None:
    """Makes inserted layers change nothing."""
    for entry in job.plan.inserted:
        if entry.role == "identity" and entry.layer.kind != "norm":
            put_kernel(entry.layer, job.xp.asarray(identity_kernel(entry.layer.shape)), job.fitted)
        for path, value in entry.constants:
            job.fitted[path] = job.xp.full_like(job.fitted[path], value)


def take_kernel(layer: Layer, leaves: Mapping[str, Any]) -> Any:
    """Takes a kernel `[*spatial, I, O]`, or the scale `[C]` of a norm, out of its leaf."""
    stored = leaves[layer.weight]
    stored = stored[layer.index] if layer.index else stored
    return stored.transpose(layer.axes).reshape(layer.shape)


def put_kernel(layer: Layer, kernel: Any, leaves: Leaves) -> None:
    """Puts a kernel back into its leaf; the inverse of `take_kernel`."""
    leaf = leaves[layer.weight]
    shape = leaf.shape[len(layer.index) :]
    kernel = kernel.reshape([shape[axis] for axis in layer.axes])
    kernel = kernel.transpose(np.argsort(layer.axes)).astype(leaf.dtype)
    leaves[layer.weight] = replace(leaf, layer.index, kernel) if layer.index else kernel


def take_vector(layer: Layer, path: str, leaves: Mapping[str, Any]) -> Any:
    """Takes a vector out of its leaf; Equinox stores a bias as `[O, 1, 1]`."""
    stored = leaves[path]
    return (stored[layer.index] if layer.index else stored).reshape(-1)


def put_vector(layer: Layer, path: str, vector: Any, leaves: Leaves) -> None:
    """Puts a vector back; the inverse of `take_vector`."""
    leaf = leaves[path]
    vector = vector.reshape(leaf.shape[len(layer.index) :]).astype(leaf.dtype)
    leaves[path] = replace(leaf, layer.index, vector) if layer.index else vector
