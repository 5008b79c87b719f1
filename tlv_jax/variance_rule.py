"""The variance rule, for many kernels at once.

What is large is done on the device, see `variance_programs`. Here channels are ordered and given
their places; where nothing is traced by NumPy, since XLA sorts slowly on a CPU, and to start a
program costs more than some hundred numbers take.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.stages import Lowered

from tlv_jax.compiling import CompilingAhead
from tlv_jax.layer_keys import key_words
from tlv_jax.permutations import Draw, lowered_permutations, permutations, places
from tlv_jax.selection import argsort, chosen_ranks, in_memory, numbers_of_places
from tlv_jax.types import Array
from tlv_jax.variance_layout import Layout, Settings, Spec, lay_out
from tlv_jax.variance_programs import (
    Channels,
    Measured,
    filled,
    looked_up,
    lowered_measure,
    measure,
)

__all__ = ["Described", "Fitted", "fit_batches", "variance"]

Described = tuple[Sequence[jax.ShapeDtypeStruct], Sequence[jax.ShapeDtypeStruct]]
"""Sources and targets of a batch as a program is lowered for them."""


def variance(
    key: Array,
    source: Array,
    target: Array,
    *,
    keep: str = "interleaved",
    remove: str = "random",
    pad: str = "zero",
    pool: str = "avg",
    shuffle: bool = True,
) -> Array:
    """The variance rule of TLVFC (2024), which its published code calls `VarTransfer`.

    The source is resized to the target's spatial size. Where it has too many output channels, some
    are kept by the variance of their weights; too many inputs are thinned likewise, for each filter
    on its own. Where it has too few, it takes the place of channels of the target, chosen by the
    variance of the target's own initial values, and the rest of the target stays as it is.

    As published, `remove="two_tailed"` places equal numbers at either end, so that of an odd number
    of source channels the last finds no place.

    Departures from the published code: any kernel size, odd growth and non-square ones included;
    random choice draws without replacement and can reach the last channel; ties go by position. To
    grow the outputs while shrinking the inputs, it thins the source and places it in the target,
    where the published code goes through a freshly drawn temporary kernel. The shuffle decides
    which channel of the source comes to which place; what the target keeps of its own stays where
    it is, which for weights that were drawn alike makes no difference. A border of `pad="init"` has
    no say in the order of the variances.

    Args:
      key: random key, consumed.
      source: `[*spatial, I, O]`.
      target: `[*spatial', I', O']`, the target's own initial kernel.
      keep: which source channels stay when there are too many: `max`, `min`, `interleaved`,
        `two_tailed` or `random` (published: `maxVar`, `minVar`, `interLeaved`, `twoTailed`,
        `random`, the value `keep` of `choice_method`).
      remove: which target channels give way when there are too few; the same names (published:
        the value `remove` of `choice_method`).
      pad: what surrounds a kernel that is too small: `zero`, or `init` for He normal values
        (published: `type_pad`).
      pool: how a kernel that is too large shrinks: `avg` or `max` (published: `type_pool`).
      shuffle: permute the filters that come from the source, and the inputs of each on its own.
        The published code always does.

    Returns:
      The fitted kernel, `[*spatial', I', O']` in the target's dtype.

    Raises:
      OptionError: for a value that is not listed here.
    """
    settings = Settings(keep, remove, pad, pool, shuffle)
    layout = lay_out(settings, (_spec(source),), (0,), (_spec(target),))
    words, key_type = key_words(key)
    batches = [([source], [target])]
    (fitted,) = fit_batches((layout,), key_type, words[None], batches, check_finite=False)
    return fitted.kernels[0]


class Fitted(NamedTuple):
    """A batch that was fitted.

    Attributes:
      kernels: one for each target.
      evidence: of each source an array that is finite only if the source is; none if not asked.
    """

    kernels: Sequence[Array]
    evidence: Sequence[Array]


def fit_batches(
    layouts: tuple[Layout, ...],
    key_type: Hashable,
    words: Array | np.ndarray,
    batches: Iterable[tuple[Sequence[Array], Sequence[Array]]],
    *,
    described: Iterable[Described] | None = None,
    check_finite: bool,
) -> Iterator[Fitted]:
    """Fits batches of kernels; while channels of one are ordered, the next one is measured.

    Args:
      layouts: of each batch.
      key_type: implementation of the keys; None for raw ones.
      words: of a key for each target, `[L, W]`, those of all batches one after another; consumed.
      batches: sources, each `[*spatial, I, O]`, and targets, each `[*spatial', I', O']`. Taken one
        by one, at most one ahead of what is returned.
      described: of each batch, if programs are to be compiled ahead.
      check_finite: find evidence of the sources being finite.
    """
    filter_draws, input_draws = _draws(layouts)
    ahead = _ahead(layouts, check_finite)
    if described is not None:
        ahead.start(_programs(layouts, described, check_finite))
    filters = ahead.before("filters", permutations(words, (filter_draws,)))
    inputs = ahead.before("inputs", permutations(words, input_draws))
    drawn = _drawn_filters(filters, filter_draws), inputs
    started: deque[_Started] = deque()
    first = 0
    batches = ahead.before("measure", iter(batches))
    for layout, (sources, targets) in zip(layouts, batches, strict=True):
        own = words[first : first + len(targets)]
        first += len(targets)
        measured = measure(layout, sources, targets, check_finite=check_finite)
        started.append(_Started(layout, key_type, own, targets, measured))
        if len(started) > 1:
            yield _finish(started.popleft(), *drawn)
    for batch in started:
        yield _finish(batch, *drawn)


@functools.lru_cache(maxsize=256)
def _ahead(layouts: tuple[Layout, ...], check_finite: bool) -> CompilingAhead:
    """Of batches of these layouts; nothing is started yet."""
    del layouts, check_finite
    return CompilingAhead()


def _programs(
    layouts: tuple[Layout, ...], described: Iterable[Described], check_finite: bool
) -> Iterator[tuple[str, int, Lowered]]:
    """Those that can be lowered before anything is measured, in the order of their calls."""
    filter_draws, input_draws = _draws(layouts)
    filters, inputs = lowered_permutations((filter_draws,)), lowered_permutations(input_draws)
    part_number = 0
    for number, (layout, arrays) in enumerate(zip(layouts, described, strict=True)):
        yield "measure", number, lowered_measure(layout, *arrays, check_finite=check_finite)
        for lowered in next(filters, ()):
            yield "filters", 0, lowered
        for _ in layout.parts:
            for lowered in next(inputs):
                yield "inputs", part_number, lowered
            part_number += 1


class _Started(NamedTuple):
    """A batch whose fitting has been started; what is measured may not be there yet."""

    layout: Layout
    key_type: Hashable
    words: Array | np.ndarray
    targets: Sequence[Array]
    measured: Measured


@functools.lru_cache(maxsize=256)
def _draws(layouts: tuple[Layout, ...]) -> tuple[tuple[Draw, ...], tuple[tuple[Draw, ...], ...]]:
    """The permutations of filters that are needed, and those of inputs, part by part."""
    filters: list[Draw] = []
    inputs: list[tuple[Draw, ...]] = []
    first = 0
    for part in itertools.chain.from_iterable(layout.parts for layout in layouts):
        wanted = list(enumerate(part.fits, first))
        filters += (f.filter_draw._replace(owner=n) for n, f in wanted if f.filter_draw is not None)
        drawn = (f.input_draw._replace(owner=n) for n, f in wanted if f.input_draw is not None)
        inputs.append(tuple(drawn))
        first += len(part.fits)
    return tuple(filters), tuple(inputs)


def _drawn_filters(drawn: Iterator[list[Array]], draws: tuple[Draw, ...]) -> Iterator[Any]:
    """The permutation of each draw, `[N', 1]`, all drawn when the first is asked for."""
    arrays = list(map(_on_host, next(drawn)))
    for array, column in places(draws):
        yield arrays[array][:, column, None]


def _finish(
    started: _Started, drawn_filters: Iterator[Any], drawn_inputs: Iterator[list[Array]]
) -> Fitted:
    """Waits for what was started, orders channels, and fills the targets."""
    layout, key_type, words, targets, measured = started
    chosen = zip(
        _kept_channels(layout, measured), _places(layout, measured, drawn_filters), strict=True
    )
    fitted: list[Array] = []
    for part in layout.parts:
        draws = next(drawn_inputs)  # on the device, while channels are ordered here
        stop = part.start + len(part.fits)
        kept, taken = zip(*itertools.islice(chosen, len(part.fits)), strict=True)
        filters, inputs = zip(*kept, strict=True)
        columns, orders = zip(*taken, strict=True)
        filters = _concatenated(list(map(_filters_of_places, filters, columns)))
        channels = Channels(inputs, orders, _concatenated(columns), filters, draws)
        known: list[Array | None] = [None] * len(part.fits)
        if any(fit.looks_up_once for fit in part.fits):
            known = looked_up(part.filling, channels)
        fitted += filled(
            part.filling,
            key_type,
            words[part.start : stop] if layout.settings.pad == "init" else None,
            [measured.kernels[kernel] for kernel in part.kernels],
            targets[part.start : stop],
            channels,
            known,
        )
    return Fitted(fitted, measured.evidence)


def _kept_channels(layout: Layout, measured: Measured) -> Iterator[tuple[Any, Any]]:
    """Of each fit the filters that are kept, and the inputs of these filters.

    Filters are `[F]`, in the order of their ranks, and None if any may be kept. Inputs are
    `[K, F]`, or the same for all, `[K, 1]`, and None likewise.
    """
    of_filters = dict(zip(layout.filter_variances, measured.filter_variances, strict=True))
    of_inputs = dict(zip(layout.input_variances, measured.input_variances, strict=True))
    ranks = functools.partial(chosen_ranks, layout.settings.keep)

    # Several targets may ask the same of one source.
    @functools.cache
    def filter_order(kernel: int, pixels: int) -> Any:
        return argsort(_on_host(of_filters[kernel, pixels]))

    @functools.cache
    def input_order(kernel: int, pixels: int, count: int | None, alone: bool) -> Any:
        array, filters = measured.kernels[kernel], None
        if count is not None:
            filters = filter_order(kernel, pixels)[ranks(array.shape[-1], count)]
        if alone:
            return argsort(_magnitudes(in_memory(array), filters))
        return argsort(_columns(in_memory(of_inputs[kernel, pixels]), filters))

    for fit in layout.fits:
        filters = inputs = None
        if fit.ranks_filters:
            filters = filter_order(fit.kernel, fit.pixels)[ranks(fit.given[-1], fit.filters)]
        if fit.ranks_inputs:
            # Kernels of one pixel rank their inputs over all filters, whichever are kept.
            count = fit.filters if fit.ranks_filters and fit.pixels > 1 else None
            order = input_order(fit.kernel, fit.pixels, count, fit.measures_kept_alone)
            inputs = _columns(order, ranks(fit.given[-2], fit.inputs))
            if isinstance(inputs, np.ndarray) and fit.given[-2] <= 1 << 16:
                inputs = inputs.astype(np.uint16)  # more of it stays in a CPU's cache
        yield filters, inputs


def _places(
    layout: Layout, measured: Measured, drawn_filters: Iterator[Any]
) -> Iterator[tuple[Any, Any]]:
    """Of each fit the filter's number that comes to each place, and the order of input places.

    Numbers are `[O']`, -1 for none. Orders are by variance, `[I', O']` or `[I', 1]`; None where the
    places are not chosen by it.
    """
    of_filters = iter(measured.own_filter_variances)
    of_inputs = iter(measured.own_input_variances)
    choice: Any = {"remove": layout.settings.remove, "shuffle": layout.settings.shuffle}
    for fit in layout.fits:
        order = input_order = drawn = None
        if fit.ranks_places:
            order = argsort(_on_host(next(of_filters)))[:, None]
        if fit.filter_draw is not None:
            drawn = next(drawn_filters)
        if fit.ranks_input_places:
            input_order = argsort(_columns(in_memory(next(of_inputs)), None)).T
        columns = numbers_of_places(order, drawn, fit.filters, (fit.shape[-1], 1), **choice)
        yield columns[:, 0], input_order


def _filters_of_places(kept: Any, columns: Any) -> Any:
    """Where the filter of each place stands in the source. `[O']`, 0 for none."""
    xp: Any = jnp if isinstance(kept, Array) or isinstance(columns, Array) else np
    columns = xp.maximum(columns, 0)
    return columns if kept is None else xp.asarray(kept)[columns]


def _concatenated(arrays: Sequence[Any]) -> Any:
    """In one array: each that is given to a program takes its time."""
    xp: Any = jnp if any(isinstance(array, Array) for array in arrays) else np
    return xp.concatenate(arrays)


def _by_numpy_or_compiled(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Compiles a function of an array, unless that is NumPy's; else XLA would run it by steps."""
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(array: Any, numbers: Any) -> Any:
        return (function if isinstance(array, np.ndarray) else compiled)(array, numbers)

    return call


@_by_numpy_or_compiled
def _columns(matrix: Any, numbers: Any) -> Any:
    """These columns as rows, or all. `[M, N] -> [n, M]`."""
    return (matrix if numbers is None else matrix[:, numbers]).T


@_by_numpy_or_compiled
def _magnitudes(kernel: Any, filters: Any) -> Any:
    """Of these filters of a kernel of one pixel. `[*s, I, O] -> [F, I]`.

    The variance of one weight among zeros is its square times a number: both have one order.
    """
    return abs(kernel.reshape(kernel.shape[-2:])[:, filters]).T


def _spec(array: Any) -> Spec:
    return array.shape, array.dtype


def _on_host(array: Any) -> Any:
    """As NumPy's, unless it is traced."""
    return array if isinstance(array, Tracer) else np.asarray(array)
