"""The programs of the variance rule: what is large, for many kernels at once, on the device."""

import functools
import operator
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Lowered

from tlv_jax import kernels
from tlv_jax.finiteness import sums
from tlv_jax.layer_keys import typed_key
from tlv_jax.permutations import places
from tlv_jax.selection import numbers_of_places, placed
from tlv_jax.types import Array
from tlv_jax.variance_layout import Filling, Fit, Layout

__all__ = ["Channels", "Measured", "filled", "looked_up", "lowered_measure", "measure"]


class Measured(NamedTuple):
    """What is found out of sources and targets.

    Attributes:
      kernels: the sources as they are fitted, `[*s, I, O]`.
      filter_variances: `[O]`, see `kernels.filter_variance`.
      input_variances: `[I, O]` or `[I, 1]`, see `kernels.input_variance`.
      own_filter_variances: those of the targets.
      own_input_variances: likewise.
      evidence: of each source an array that is finite only if the source is; none if not asked.
    """

    kernels: list[Array]
    filter_variances: list[Array]
    input_variances: list[Array]
    own_filter_variances: list[Array]
    own_input_variances: list[Array]
    evidence: list[Array]


class Channels(NamedTuple):
    """Which channels come to which places of the targets of one part.

    Attributes:
      kept: of each fit the inputs of the kept filters, `[K, F]`, or the same for all, `[K, 1]`;
        None if any may be.
      orders: of each fit the order of the target's inputs by variance, `[I', O']` or `[I', 1]`;
        None where their places are not chosen by it.
      columns: the number of the filter that comes to each place, -1 for none, of all targets one
        after another.
      filters: where these filters stand in the source, 0 for none, likewise.
      draws: permutations of inputs.
    """

    kept: tuple[Array | None, ...]
    orders: tuple[Array | None, ...]
    columns: Array
    filters: Array
    draws: list[Array]


def measure(
    layout: Layout, sources: Sequence[Array], targets: Sequence[Array], *, check_finite: bool
) -> Measured:
    """Starts to measure; a source that is fitted as it is stays where it is."""
    measured = _measures(layout, check_finite, sources, targets)
    resized, summed = iter(measured.kernels), iter(measured.evidence)
    shown = layout.shown_finite if check_finite else ()
    return measured._replace(
        kernels=[sources[k.source] if k.as_is else next(resized) for k in layout.kernels],
        evidence=[next(summed) if n is None else measured.filter_variances[n] for n in shown],
    )


def lowered_measure(
    layout: Layout,
    sources: Sequence[jax.ShapeDtypeStruct],
    targets: Sequence[jax.ShapeDtypeStruct],
    *,
    check_finite: bool,
) -> Lowered:
    """Lowers the program by which `measure` does it."""
    return _measures.lower(layout, check_finite, sources, targets)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measures(
    layout: Layout, check_finite: bool, sources: Sequence[Array], targets: Sequence[Array]
) -> Measured:
    """Only the kernels that are not sources, and the evidence that is not there already."""
    fitted = [
        sources[kernel.source]
        if kernel.as_is
        else kernels.pool_spatial(
            sources[kernel.source].astype(kernel.dtype), kernel.size, pool=layout.settings.pool
        )
        for kernel in layout.kernels
    ]
    pixels = [fit.pixels for fit in layout.fits]
    unshown = [array for array, n in zip(sources, layout.shown_finite, strict=True) if n is None]
    return Measured(
        [array for array, kernel in zip(fitted, layout.kernels, strict=True) if not kernel.as_is],
        [kernels.filter_variance(fitted[n], count) for n, count in layout.filter_variances],
        [kernels.input_variance(fitted[number], count) for number, count in layout.input_variances],
        [
            kernels.filter_variance(targets[number], pixels[number])
            for number in layout.own_filter_variances
        ],
        [
            kernels.input_variance(targets[number], pixels[number])
            for number in layout.own_input_variances
        ],
        sums(unshown) if check_finite else [],
    )


@functools.partial(jax.jit, static_argnums=0)
def looked_up(filling: Filling, channels: Channels) -> list[Array | None]:
    """The input of each place, `[I', O']`, of kernels for which it is looked up only once.

    A program by itself: as a part of `filled` it would be done for each pixel.
    """
    return [
        _inputs(numbers, given, kept, columns) if fit.looks_up_once else None
        for fit, numbers, given, kept, columns, _ in _by_fit(filling, channels)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def filled(
    filling: Filling,
    key_type: Hashable,
    words: Array | None,
    sources: Sequence[Array],
    targets: Sequence[Array],
    channels: Channels,
    known_inputs: Sequence[Array | None],
) -> list[Array]:
    """Fills the places that are given an input and, with their column, a filter.

    Args:
      filling: of a part.
      key_type: implementation of the keys.
      words: of its keys, `[L, W]`; None where nothing but permutations is drawn.
      sources: its kernels.
      targets: likewise.
      channels: likewise.
      known_inputs: from `looked_up`.
    """
    fitted = []
    for number, row in enumerate(_by_fit(filling, channels)):
        fit, numbers, given, kept, columns, filters = row
        inputs = known_inputs[number]
        if inputs is None:
            inputs = _inputs(numbers, given, kept, columns)
        inputs = inputs.astype(jnp.uint32)
        kernel, target = sources[fit.kernel], targets[number]
        kernel = kernels.gather_channels(kernel, inputs, filters.astype(jnp.uint32)[None])
        if kernel.shape != fit.shape:
            key, fan_out = None, None
            if filling.settings.pad == "init":
                assert words is not None
                key, fan_out = typed_key(words[number], key_type), fit.given[-1] * fit.pixels
            kernel = kernels.pad_spatial(key, kernel, fit.shape[:-2], fan_out)
        if given is not None:
            kernel = jnp.where(given, kernel, target.astype(kernel.dtype))
        fitted.append(kernel.astype(target.dtype))
    return fitted


def _by_fit(
    filling: Filling, channels: Channels
) -> Iterator[tuple[Fit, Array, Array | None, Array | None, Array, Array]]:
    """Each fit, its numbers `[I', O']`, which are given, and its own of the channels."""
    settings = filling.settings
    choice: Any = {"remove": settings.remove, "shuffle": settings.shuffle}
    draws = (fit.input_draw for fit in filling.fits)
    drawn_at = iter(places(tuple(draw for draw in draws if draw is not None)))
    start = 0
    for fit, kept, order in zip(filling.fits, channels.kept, channels.orders, strict=True):
        inputs, outputs = fit.shape[-2:]
        shape = inputs, outputs
        columns, filters = (
            numbers[start : start + outputs] for numbers in (channels.columns, channels.filters)
        )
        start += outputs
        numbers: Any = None
        if fit.input_draw is not None:
            place = next(drawn_at)
            numbers = channels.draws[place.array][:, place.column : place.column + outputs]
        if order is not None:
            numbers = numbers_of_places(order, numbers, fit.inputs, shape, **choice)
        elif numbers is None:
            numbers = lax.broadcasted_iota(jnp.uint32, shape, 0)
        numbers = numbers[:inputs].astype(jnp.uint32)
        conditions = []
        if fit.inputs < inputs:
            conditions.append(numbers < np.uint32(placed(fit.inputs, settings.remove)))
        if fit.filters < outputs:
            conditions.append(jnp.broadcast_to(columns >= 0, shape))
        given = functools.reduce(operator.and_, conditions) if conditions else None
        yield fit, numbers, given, kept, columns, filters


def _inputs(numbers: Array, given: Array | None, kept: Array | None, columns: Array) -> Array:
    """The input of the source that comes to each place. `[I', O']`, 0 where none does."""
    if given is not None:
        numbers = jnp.where(given, numbers, np.uint32(0))
    if kept is None:
        return numbers
    column = jnp.maximum(columns, 0).astype(jnp.uint32)[None] if kept.shape[1] > 1 else 0
    return kept.at[numbers, column].get(mode="promise_in_bounds")
