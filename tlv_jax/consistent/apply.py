"""Carry a channel plan out on arrays, in NumPy or `jax.numpy`.

A place is a number along an axis of the source; NONE where an entry of the target is given nothing.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tlv_jax.arrays import largest, replace
from tlv_jax.consistent.plan import NONE, Axis, ChannelPlan, LayerChannels


def kept_channels(plan: ChannelPlan, kernels: Mapping[str, Any], xp: ModuleType) -> list[Any]:
    """For each space the source channel of each of its target channels, NONE for none. `[wanted]`.

    Args:
      plan: of the channels.
      kernels: source kernels `[*spatial, I, O]` by the paths of their layers.
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
            if plan.rank == "trace" and source in kernels:  # else it is a norm that comes first
                worth = _traced_worth(kernels[source], layers[target], kept, xp)
            else:
                worth = sum(_worth(kernels[path], plan.rank, xp) for path in space.writers)
            kept.append(largest(worth, space.wanted, xp))
        else:
            kept.append(numbers)
    return kept


def _worth(kernel: Any, rank: str, xp: ModuleType) -> Any:
    """What each output channel counts in one layer, as a share of the layer. `[O]`."""
    wide = kernel.astype(np.float32, copy=False)
    axes = tuple(range(kernel.ndim - 1))
    worth = xp.var(wide, axis=axes) if rank == "variance" else xp.abs(wide).sum(axis=axes)
    return worth / xp.maximum(worth.sum(), np.finfo(np.float32).tiny)


def _traced_worth(kernel: Any, layer: LayerChannels, kept: Sequence[Any], xp: ModuleType) -> Any:
    """What each output channel counts over the inputs that are kept before it. `[O]`.

    All inputs count in a grouped kernel, which has others in each group, and in one that adds to
    what it reads, as its own outputs are not chosen yet.
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
    """Takes the channels that were chosen out of a source kernel.

    Args:
      plan: of the channels.
      layer: whose kernel it is.
      kept: of `kept_channels`.
      source: `[*spatial, I, O]`.
      shape: of the target, `[*spatial', I', O']`.
      xp: NumPy or `jax.numpy`.

    Returns:
      `[*spatial, I', O']`, which of its entries are the source's, `[I', O']`, and the places of the
      outputs along the source's, `[O']`.
    """
    inputs, outputs = shape[-2:]
    weight = xp.abs(source.astype(np.float32, copy=False)).sum(
        axis=tuple(range(source.ndim - 2))
    )  # [I, O]
    # The inputs of a grouped kernel are counted anew in each group: ranking them says nothing.
    rank = "first" if layer.source_groups > 1 else plan.rank
    worth = xp.tile(weight.sum(axis=1), layer.source_groups)
    own_reads = _own_places(worth, inputs * layer.target_groups, rank, xp)
    reads = _axis_places(layer.reads, kept, own_reads, xp)
    own_writes = _own_places(weight.sum(axis=0), outputs, plan.rank, xp)
    writes = _axis_places(layer.writes, kept, own_writes, xp)
    given, inside = _gather(layer, reads, writes, source, (inputs, outputs), xp)
    if plan.grow == "copy" and layer.target_groups == 1:
        copies = _copies_of(reads, source.shape[-2] * layer.source_groups, xp)
        columns = copies.reshape((1,) * (given.ndim - 2) + (-1, 1))
        given = (given / columns).astype(source.dtype)
    return given, inside, writes


def norm_places(
    layer: LayerChannels, kept: Sequence[Any], size: int, count: int, xp: ModuleType
) -> Any:
    """Where each channel of a norm stands among the `size` of the source. `[count]`."""
    own = _own_places(np.ones(size, np.float32), count, "first", xp)
    return _axis_places(layer.writes, kept, own, xp)


def take_places(source: Any, places: Any, target: Any, xp: ModuleType) -> Any:
    """The entries of a vector that were chosen, and the target's own elsewhere. `[n]`."""
    taken = source[xp.maximum(places, 0)].astype(target.dtype)
    return xp.where(places == NONE, target, taken)


def _axis_places(axis: Axis, kept: Sequence[Any], own: Any, xp: ModuleType) -> Any:
    """Where along the source's axis each entry of the target's stands. `[n]`.

    Args:
      axis: of the plan.
      kept: of `kept_channels`.
      own: what to use where the layer ranks its own channels, `[n]`.
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
    """The worthiest entries in their order, or all and NONE for the rest. `[n] -> [count]`."""
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
      `[*spatial, I', O']`, and which of its entries are the source's, `[I', O']`.
    """
    inputs, outputs = shape
    per_group = source.shape[-2]
    if layer.source_groups == layer.target_groups == 1:
        taken = xp.take(source, xp.maximum(reads, 0), axis=-2)
        taken = xp.take(taken, xp.maximum(writes, 0), axis=-1)
        return taken, (reads != NONE)[:, None] & (writes != NONE)[None, :]
    # An input is there for an output only if both stand in one group of the source.
    group = np.arange(outputs) // (outputs // layer.target_groups)
    reads = reads[group[None, :] * inputs + np.arange(inputs)[:, None]]
    source_group = writes // (source.shape[-1] // layer.source_groups)
    local = reads - source_group[None, :] * per_group
    inside = (reads != NONE) & (local >= 0) & (local < per_group) & (writes != NONE)[None, :]
    taken = source[..., xp.clip(local, 0, per_group - 1), xp.maximum(writes, 0)[None, :]]
    return taken, inside


def _copies_of(places: Any, size: int, xp: ModuleType) -> Any:
    """How many entries of the target were given the same entry of the source. `[n] -> [n]`."""
    counts = (places[:, None] == np.arange(size)[None, :]).sum(axis=0).astype(np.float32)
    return xp.where(places == NONE, np.float32(1), counts[xp.maximum(places, 0)])


def identity_kernel(shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that hands each channel on: 1 in the middle of its window. `[*spatial, I, O]`.

    Args:
      shape: of the kernel, its spatial sizes odd. `O` is `I` times the number of groups.
    """
    *spatial, inputs, outputs = shape
    kernel = np.zeros(shape, np.float32)
    channels = np.arange(outputs)
    kernel[(*(size // 2 for size in spatial), channels % inputs, channels)] = 1
    return kernel
