"""Apply a channel plan to arrays, in NumPy or `jax.numpy`.

A place is a position along an axis of the source; NONE where an entry of the target gets nothing.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tlv_jax.arrays import largest, replace
from tlv_jax.consistent.plan import NONE, Axis, ChannelPlan, LayerChannels


def kept_channels(plan: ChannelPlan, kernels: Mapping[str, Any], xp: ModuleType) -> list[Any]:
    """For each space the source channel of each target channel, NONE for none. `[wanted]`.

    Args:
      plan: of the channels.
      kernels: source kernels `[*spatial, I, O]` by the path of the layer.
      xp: NumPy or `jax.numpy`.
    """
    kept: list[Any] = []
    layers = {layer.target: layer for layer in plan.layers}
    for space in plan.spaces:
        numbers = np.arange(space.wanted)
        if space.wanted > space.size:
            copies = numbers % space.size if plan.grow == "copy" else NONE
            kept.append(np.where(numbers < space.size, numbers, copies))
        elif space.wanted < space.size and plan.rank != "first" and space.writers:
            source, target = space.first
            if plan.rank == "trace" and source in kernels:  # not so if a norm comes first
                worth = _traced_worth(kernels[source], layers[target], kept, xp)
            else:
                worth = sum(_worth(kernels[path], plan.rank, xp) for path in space.writers)
            kept.append(largest(worth, space.wanted, xp))
        else:
            kept.append(numbers)
    return kept


def _worth(kernel: Any, rank: str, xp: ModuleType) -> Any:
    """The worth of each output channel in one layer, as a share of the layer. `[O]`."""
    wide = kernel.astype(np.float32, copy=False)
    axes = tuple(range(kernel.ndim - 1))
    worth = xp.var(wide, axis=axes) if rank == "variance" else xp.abs(wide).sum(axis=axes)
    return worth / xp.maximum(worth.sum(), np.finfo(np.float32).tiny)


def _traced_worth(kernel: Any, layer: LayerChannels, kept: Sequence[Any], xp: ModuleType) -> Any:
    """The worth of each output channel over the inputs that are kept. `[O]`.

    All inputs count in a grouped kernel, whose groups read different ones, and in a kernel that
    adds to what it reads: those channels are not chosen yet.
    """
    decided = all(number < len(kept) for number, _ in layer.reads.places)
    if decided and not layer.reads.own and layer.source_groups == 1:
        chosen = _axis_places(layer.reads, kept, None, xp)
        taken = kernel[..., xp.maximum(chosen, 0), :]
        kernel = xp.where(xp.broadcast_to((chosen != NONE)[:, None], taken.shape), taken, 0)
    return _worth(kernel, "magnitude", xp)


def choose_kernel(
    plan: ChannelPlan,
    layer: LayerChannels,
    kept: Sequence[Any],
    source: Any,
    shape: tuple[int, ...],
    xp: ModuleType,
) -> tuple[Any, Any, Any]:
    """Takes the chosen channels of a source kernel.

    Args:
      plan: of the channels.
      layer: the kernel's.
      kept: from `kept_channels`.
      source: `[*spatial, I, O]`.
      shape: of the target, `[*spatial', I', O']`.
      xp: NumPy or `jax.numpy`.

    Returns:
      `[*spatial, I', O']`; which of its entries come from the source, `[I', O']`; and the places of
      the outputs, `[O']`.
    """
    inputs, outputs = shape[-2:]
    weight = xp.abs(source.astype(np.float32, copy=False)).sum(
        axis=tuple(range(source.ndim - 2))
    )  # [I, O]
    own_writes = _own_places(weight.sum(axis=0), outputs, plan.rank, xp)
    writes = _axis_places(layer.writes, kept, own_writes, xp)
    if layer.source_groups == source.shape[-1] and inputs * layer.target_groups == outputs:
        own_reads = writes  # a filter of a depthwise kernel reads the channel that it writes
    else:
        # Each group of a kernel numbers its inputs from 0: ranking those numbers says nothing.
        rank = "first" if layer.source_groups > 1 else plan.rank
        worth = xp.tile(weight.sum(axis=1), layer.source_groups)
        own_reads = _own_places(worth, inputs * layer.target_groups, rank, xp)
    reads = _axis_places(layer.reads, kept, own_reads, xp)
    given, inside = _gather(layer, reads, writes, source, (inputs, outputs), xp)
    if plan.grow == "copy" and layer.target_groups == 1:
        copies = _copies_of(reads, source.shape[-2] * layer.source_groups, xp)
        columns = copies.reshape((1,) * (given.ndim - 2) + (-1, 1))
        given = (given / columns).astype(source.dtype)
    return given, inside, writes


def norm_places(
    layer: LayerChannels, kept: Sequence[Any], size: int, count: int, xp: ModuleType
) -> Any:
    """The place of each channel of a norm among the `size` of the source. `[count]`."""
    own = _own_places(np.ones(size, np.float32), count, "first", xp)
    return _axis_places(layer.writes, kept, own, xp)


def take_places(source: Any, target: Any, places: Any, xp: ModuleType) -> Any:
    """The chosen entries of a vector, and the target's own elsewhere. `[n]`."""
    taken = source[xp.maximum(places, 0)].astype(target.dtype)
    return xp.where(places == NONE, target, taken)


def _axis_places(axis: Axis, kept: Sequence[Any], own: Any, xp: ModuleType) -> Any:
    """The place of each entry of a target axis. `[n]`.

    Args:
      axis: of the plan.
      kept: from `kept_channels`.
      own: the places if the layer ranks its own channels, `[n]`.
      xp: NumPy or `jax.numpy`.
    """
    if axis.own:
        return own
    space, channel, occurrence = map(np.array, (axis.space, axis.channel, axis.occurrence))
    result = xp.full(len(space), NONE, np.int32)
    for number, places in axis.places:
        entries = np.flatnonzero(space == number)
        chosen = kept[number][channel[entries]]
        stands = xp.asarray(places)[chosen, occurrence[entries]]
        result = replace(result, entries, xp.where(chosen == NONE, NONE, stands))
    return result


def _own_places(worth: Any, count: int, rank: str, xp: ModuleType) -> Any:
    """The worthiest entries in their order, or all, then NONE. `[n] -> [count]`."""
    size = len(worth)
    if count >= size or rank == "first":
        numbers = np.arange(count)
        return xp.asarray(np.where(numbers < size, numbers, NONE))
    return largest(worth, count, xp)


def _gather(
    layer: LayerChannels,
    reads: Any,
    writes: Any,
    source: Any,
    shape: tuple[int, int],
    xp: ModuleType,
) -> tuple[Any, Any]:
    """Takes inputs `reads [I' * groups']` and outputs `writes [O']` out of `[*spatial, I, O]`.

    Returns:
      `[*spatial, I', O']`, and which of its entries come from the source, `[I', O']`.
    """
    inputs, outputs = shape
    per_group = source.shape[-2]
    if layer.source_groups == layer.target_groups == 1:
        taken = xp.take(source, xp.maximum(reads, 0), axis=-2)
        taken = xp.take(taken, xp.maximum(writes, 0), axis=-1)
        return taken, (reads != NONE)[:, None] & (writes != NONE)[None, :]
    # The source has a weight only where input and output are in one of its groups.
    group = np.arange(outputs) // (outputs // layer.target_groups)
    reads = reads[group[None, :] * inputs + np.arange(inputs)[:, None]]
    source_group = writes // (source.shape[-1] // layer.source_groups)
    local = reads - source_group[None, :] * per_group
    inside = (reads != NONE) & (local >= 0) & (local < per_group) & (writes != NONE)[None, :]
    taken = source[..., xp.clip(local, 0, per_group - 1), xp.maximum(writes, 0)[None, :]]
    return taken, inside


def _copies_of(places: Any, size: int, xp: ModuleType) -> Any:
    """How many entries of the target get the same entry of the source. `[n] -> [n]`."""
    counts = (places[:, None] == np.arange(size)[None, :]).sum(axis=0).astype(np.float32)
    return xp.where(places == NONE, np.float32(1), counts[xp.maximum(places, 0)])


def identity_kernel(shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that passes each channel on: 1 in the middle of its window. `[*spatial, I, O]`.

    Args:
      shape: of the kernel, with odd spatial sizes. `O` is `I` times the number of groups.
    """
    *spatial, inputs, outputs = shape
    kernel = np.zeros(shape, np.float32)
    channels = np.arange(outputs)
    kernel[(*(size // 2 for size in spatial), channels % inputs, channels)] = 1
    return kernel
