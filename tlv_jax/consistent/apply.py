"""Apply a channel plan to arrays, in NumPy or `jax.numpy`.

A place is a position along an axis of the source; NONE where an entry of the target gets nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tlv_jax.arrays import largest
from tlv_jax.consistent.plan import NONE, Axis, ChannelPlan, LayerChannels
from tlv_jax.rules.magnitude import magnitudes
from tlv_jax.types import LayerPair


def kept_channels(plan: ChannelPlan, kernels: Mapping[str, Any], xp: ModuleType) -> Any:
    """The label of the source channel that each target channel gets, by number; NONE for none.

    `kernels` are those of the source's layers, `[*spatial, I, O]` by path.
    """
    kept: list[Any] = []
    for space in plan.spaces:
        labels = np.array(space.given, np.int32)
        missing = space.wanted - len(labels)
        if missing > 0 and plan.grow == "copy":
            labels = np.resize(labels, space.wanted)
        elif missing > 0:
            labels = np.pad(labels, (0, missing), constant_values=NONE)
        elif missing < 0 and plan.rank != "first" and space.writers:
            reads = None
            if space.reads is not None:
                reads = axis_places(space.reads, xp.concatenate(kept), None, xp)
            worth = sum(_worth(kernels[path], reads, plan.rank, xp) for path in space.writers)
            labels = xp.asarray(labels)[largest(worth, space.wanted, xp)]
        kept.append(labels[: space.wanted])
    return xp.concatenate(kept)


def _worth(kernel: Any, reads: Any, rank: str, xp: ModuleType) -> Any:
    """The worth of each output channel in one layer, over the inputs that it keeps. `[O]`."""
    kernel = kernel.astype(np.float32, copy=False)
    if reads is not None:
        taken = kernel[..., xp.maximum(reads, 0), :]
        kernel = xp.where(xp.broadcast_to((reads != NONE)[:, None], taken.shape), taken, 0)
    if rank == "variance":
        worth = xp.var(kernel, axis=tuple(range(kernel.ndim - 1)))
    else:
        worth = magnitudes(kernel, -1, xp)
    # As a share of the layer: no layer counts for more because its weights are larger.
    return worth / xp.maximum(worth.sum(), np.finfo(np.float32).tiny)


def choose_kernel(
    plan: ChannelPlan, pair: LayerPair, layer: LayerChannels, kept: Any, source: Any, xp: ModuleType
) -> tuple[Any, Any, Any]:
    """Takes the chosen channels of a source kernel `[*spatial, I, O]`.

    Returns:
      `[*spatial, I', O']`; which of its entries come from the source, `[I', O']`; and the places of
      the outputs, `[O']`.
    """
    ranked = plan.rank != "first"
    by_outputs = functools.partial(magnitudes, source, -1, xp) if ranked else None
    writes = axis_places(layer.writes, kept, by_outputs, xp)
    depthwise = pair.source.groups == source.shape[-1]
    if layer.reads.own and depthwise and len(layer.reads.wanted) == len(layer.writes.wanted):
        reads = writes  # a filter of a depthwise kernel reads the channel that it writes
    else:
        # Each group of a kernel numbers its inputs from 0: ranking those numbers says nothing.
        ranked = ranked and pair.source.groups == 1
        by_inputs = functools.partial(magnitudes, source, -2, xp) if ranked else None
        reads = axis_places(layer.reads, kept, by_inputs, xp)
    given, inside = _gather(pair, reads, writes, source, xp)
    if plan.grow == "copy" and pair.target.groups == 1:
        # Copies of a channel share its weights, so that their sum stays the same.
        ordered = xp.sort(reads)
        first, end = (xp.searchsorted(ordered, reads, side=side) for side in ("left", "right"))
        copies = xp.where(reads == NONE, 1, end - first).astype(np.float32)
        copies = copies.reshape((1,) * (given.ndim - 2) + (-1, 1))
        given = (given / copies).astype(source.dtype)
    return given, inside, writes


def take_places(source: Any, target: Any, places: Any, xp: ModuleType) -> Any:
    """The chosen entries of a vector, and the target's own elsewhere. `[n]`."""
    taken = source[xp.maximum(places, 0)].astype(target.dtype)
    return xp.where(places == NONE, target, taken)


def axis_places(axis: Axis, kept: Any, worth: Callable[[], Any] | None, xp: ModuleType) -> Any:
    """The place of each entry of a target axis. `[n]`.

    A layer that ranks its own channels keeps those of the largest `worth()`, or the first.
    """
    size, count = len(axis.given), len(axis.wanted)
    if axis.own and worth and count < size:
        return largest(worth(), count, xp)
    if axis.own:
        return xp.asarray(np.where(np.arange(count) < size, np.arange(count), NONE))
    given, occurrence = np.array(axis.given), _occurrences(axis.given)
    low, high = given.min(), given.max()
    # Where each label from low to high stands: flattening repeats it, and each time is a column.
    # All others share the last row.
    stands = np.full((high - low + 2, occurrence.max() + 1), NONE, np.int32)
    stands[given - low, occurrence] = np.arange(size)
    rows = xp.clip(kept[np.array(axis.wanted)] - low, -1, high - low + 1)
    columns = np.minimum(_occurrences(axis.wanted), occurrence.max())
    return xp.asarray(stands)[rows, columns]


def _occurrences(labels: Sequence[int]) -> np.ndarray:
    """How many equal labels stand before each. `[n]`."""
    given = np.array(labels)
    order = np.argsort(given, kind="stable")
    ordered, before = given[order], np.empty(len(given), np.int64)
    before[order] = np.arange(len(given)) - np.searchsorted(ordered, ordered)
    return before


def _gather(
    pair: LayerPair, reads: Any, writes: Any, source: Any, xp: ModuleType
) -> tuple[Any, Any]:
    """As `choose_kernel`, at the places `reads [I' * groups']` and `writes [O']`."""
    if pair.source.groups == pair.target.groups == 1:
        # One axis after the other: places for each weight of a large kernel would take gigabytes.
        taken = xp.take(source, xp.maximum(reads, 0), axis=-2)
        taken = xp.take(taken, xp.maximum(writes, 0), axis=-1)
        return taken, (reads != NONE)[:, None] & (writes != NONE)[None, :]
    # The source has a weight only where input and output are in one of its groups.
    inputs, outputs = pair.target.shape[-2:]
    per_group = source.shape[-2]
    group = np.arange(outputs) // (outputs // pair.target.groups)
    reads = reads[group[None, :] * inputs + np.arange(inputs)[:, None]]
    source_group = writes // (source.shape[-1] // pair.source.groups)
    local = reads - source_group[None, :] * per_group
    inside = (reads != NONE) & (local >= 0) & (local < per_group) & (writes != NONE)[None, :]
    taken = source[..., xp.clip(local, 0, per_group - 1), xp.maximum(writes, 0)[None, :]]
    return taken, inside


def identity_kernel(shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that passes each channel on: 1 in the middle of its window. `[*spatial, I, O]`.

    Spatial sizes are odd, and `O` is `I` times the number of groups.
    """
    *spatial, inputs, outputs = shape
    kernel = np.zeros(shape, np.float32)
    channels = np.arange(outputs)
    kernel[(*(size // 2 for size in spatial), channels % inputs, channels)] = 1
    return kernel
