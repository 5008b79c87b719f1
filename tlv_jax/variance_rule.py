"""The variance rule: what it takes from a source alone, and how that comes into a target.

What is large is done by programs that serve many combinations of shapes. What has one number for a
channel is done by NumPy where nothing is traced: it would cost a program more to start.
"""

import functools
import math
import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax import kernels
from tlv_jax.errors import check_option
from tlv_jax.selection import RANKS, SELECTIONS, argsort, draw, in_memory, numbers_of_places, placed
from tlv_jax.types import Array

__all__ = ["KeptSource", "keep_source", "place_source", "variance"]

PADS = ("zero", "init")
POOLS = ("avg", "max")
NONE = 0xFFFFFFFF


class KeptSource(NamedTuple):
    """What is kept of a source, whatever the key.

    Attributes:
      kernel: `[*s, I, O]`, no spatial axis larger than the target's, in the wider of both dtypes.
      filters: the kept filters in the order of their ranks, `[F]`; None if any may be.
      inputs: the kept inputs of each of these filters, `[K, F]`, or the same for all, `[K, 1]`;
        None if any may be.
    """

    kernel: Array
    filters: Any
    inputs: Any


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
    kept = keep_source(source, target, keep=keep, pool=pool, known={})
    return place_source(key, kept, target, remove=remove, pad=pad, shuffle=shuffle)


def keep_source(
    source: Array, target: Array, *, keep: str, pool: str, known: dict[Hashable, Any]
) -> KeptSource:
    """The first half of `variance`; of the target only shape and dtype count.

    What it computes is added to `known`, which holds what other targets asked for of the same
    source with the same settings.
    """
    check_option("keep", keep, SELECTIONS)
    check_option("pool", pool, POOLS)
    spatial, pixels = target.shape[:-2], math.prod(target.shape[:-2])
    inputs, outputs = target.shape[-2:]
    # In the wider of both dtypes: rounding the source first would turn variances into ties.
    dtype = jnp.promote_types(source.dtype, target.dtype)
    kernel, size = source, source.shape[:-2]
    if len(size) != len(spatial) or any(np.greater(size, spatial)) or source.dtype != dtype:
        size = spatial
        kernel = _once(known, (size, dtype), lambda: _resized(source, spatial, pool, dtype))
    name = size, kernel.dtype
    filters: Any = None
    thinned: Any = None

    def filter_order() -> Any:
        moments = _once(known, (name, "moments"), lambda: _on_host(_filter_moments(kernel)))
        return argsort(kernels.filter_variance(moments, kernel.shape, pixels))

    def input_order() -> Any:
        near = in_memory(kernel)
        if filters is not None and math.prod(size) == 1 < pixels and isinstance(near, np.ndarray):
            # Of one pixel it is cheaper to compute no other filters than to compute all at once.
            return argsort(kernels.input_variance(near[..., filters], pixels).T)
        variance = _once(
            known, (name, "variance", pixels), lambda: in_memory(_input_variance(kernel, pixels))
        )
        # Kernels of one pixel rank their inputs over all filters, whichever are kept.
        return argsort(_columns(variance, None if pixels == 1 else filters))

    if keep != "random" and kernel.shape[-1] > outputs:
        order = _once(known, (name, "filters", pixels), filter_order)
        filters = order[RANKS[keep](kernel.shape[-1], outputs)]
    if keep != "random" and kernel.shape[-2] > inputs:
        count = None if pixels == 1 or filters is None else outputs
        order = _once(known, (name, "inputs", pixels, count), input_order)
        thinned = _columns(order, RANKS[keep](kernel.shape[-2], inputs))
    return KeptSource(kernel, filters, thinned)


def _once(known: dict[Hashable, Any], name: Hashable, compute: Callable[[], Any]) -> Any:
    if name not in known:
        known[name] = compute()
    return known[name]


def place_source(
    key: Array, kept: KeptSource, target: Array, *, remove: str, pad: str, shuffle: bool
) -> Array:
    """The second half of `variance`; the key may be raw words, except for `pad="init"`."""
    check_option("remove", remove, SELECTIONS)
    check_option("pad", pad, PADS)
    kernel, pixels = kept.kernel, math.prod(target.shape[:-2])
    inputs, outputs = target.shape[-2:]
    size = kernel.shape[-2] if kept.inputs is None else kept.inputs.shape[0]
    filters = kernel.shape[-1] if kept.filters is None else kept.filters.shape[0]
    choice: Any = {"remove": remove, "shuffle": shuffle}

    order = None
    if remove != "random" and filters < outputs:
        moments = _on_host(_filter_moments(target))
        order = argsort(kernels.filter_variance(moments, target.shape, pixels))[:, None]
    drawn = _on_host(draw(key, filters, outputs, 1, salt=2, **choice))
    columns = numbers_of_places(order, drawn, filters, (outputs, 1), **choice)[:, 0]

    numbers: Any = draw(key, size, inputs, outputs, salt=1, **choice)
    if remove != "random" and size < inputs:
        order = argsort(_columns(in_memory(_input_variance(target, pixels)), None)).T
        numbers = _numbers(order, numbers, size, (inputs, outputs), remove, shuffle)
    elif numbers is None:
        numbers = np.arange(inputs, dtype=np.int32)[:, None]

    places = _Places(
        (inputs, outputs), placed(size, remove) if size < inputs else None, filters < outputs
    )
    chosen = kept.inputs
    # Once, not for each pixel.
    if chosen is not None and math.prod(kernel.shape[:-2]) > 1:
        numbers, chosen = _kept_inputs(chosen, numbers, columns, places), None
        if places.inputs is not None:
            places = places._replace(inputs=kernel.shape[-2])
    return _gather(
        key if pad == "init" else None,
        kernel,
        target,
        chosen,
        numbers,
        columns,
        _columns_of_source(kept.filters, columns),
        places,
        kernel.shape[-1] * pixels if pad == "init" else None,
    )


class _Places(NamedTuple):
    """Which places of the target are given something of the source; static.

    Attributes:
      shape: of all, `(I', O')`.
      inputs: only those whose number is below this one; None if all.
      some_filters: only those of columns that have a filter.
    """

    shape: tuple[int, int]
    inputs: int | None
    some_filters: bool

    def given(self, numbers: Array, columns: Array) -> Array | None:
        """Whether each place is given something, `[I', O']` or one that broadcasts to it."""
        conditions = []
        if self.inputs is not None:
            conditions.append(numbers < np.uint32(self.inputs))
        if self.some_filters:
            conditions.append((columns >= 0)[None])
        return functools.reduce(operator.and_, conditions) if conditions else None


def _columns(matrix: Any, numbers: Any) -> Any:
    """These columns as rows, or all. `[M, N] -> [n, M]`."""
    return (_columns_by_numpy if isinstance(matrix, np.ndarray) else _columns_by_xla)(
        matrix, numbers
    )


def _columns_by_numpy(matrix: Any, numbers: Any) -> Any:
    return (matrix if numbers is None else matrix[:, numbers]).T


_columns_by_xla = jax.jit(_columns_by_numpy)  # what is not compiled would be so step by step


def _on_host(array: Any) -> Any:
    """As NumPy's, unless it is traced."""
    return array if array is None or isinstance(array, Tracer) else np.asarray(array)


def _columns_of_source(filters: Any, columns: Any) -> Any:
    """Where the filter of each place stands in the source. `[O']`, 0 for none."""
    xp: Any = jnp if isinstance(filters, Array) or isinstance(columns, Array) else np
    columns = xp.maximum(columns, 0)
    return columns if filters is None else xp.asarray(filters)[columns]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resized(source: Array, spatial: tuple[int, ...], pool: str, dtype: jnp.dtype) -> Array:
    return kernels.pool_spatial(source.astype(dtype), spatial, pool=pool)


_filter_moments = jax.jit(kernels.filter_moments)
_input_variance = jax.jit(kernels.input_variance, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _numbers(
    order: Array,
    drawn: Array | None,
    size: int,
    shape: tuple[int, int],
    remove: str,
    shuffle: bool,
) -> Array:
    return jnp.asarray(numbers_of_places(order, drawn, size, shape, remove=remove, shuffle=shuffle))


@functools.partial(jax.jit, static_argnums=3)
def _kept_inputs(kept: Array, numbers: Array, columns: Array, places: _Places) -> Array:
    """The input of each place, above all numbers where none is given. `[I', O']`."""
    inputs, given = _inputs(kept, numbers, columns, places)
    return inputs if given is None else jnp.where(given, inputs, np.uint32(NONE))


def _inputs(
    kept: Array | None, numbers: Array, columns: Array, places: _Places
) -> tuple[Array, Array | None]:
    """The input of each place, and whether one is given: if None, to all."""
    numbers = numbers[: places.shape[0], : places.shape[1]].astype(jnp.uint32)
    given = places.given(numbers, columns)
    if given is not None:
        numbers = jnp.where(given, numbers, np.uint32(0))
    if kept is not None and kept.shape[1] > 1:
        column = jnp.maximum(columns, 0).astype(jnp.uint32)[None]
        numbers = kept.at[numbers, column].get(mode="promise_in_bounds").astype(jnp.uint32)
    elif kept is not None:
        numbers = kept.at[numbers, 0].get(mode="promise_in_bounds").astype(jnp.uint32)
    return numbers, given


@functools.partial(jax.jit, static_argnums=(7, 8))
def _gather(
    key: Array | None,
    kernel: Array,
    target: Array,
    kept: Array | None,
    numbers: Array,
    columns: Array,
    filters: Array,
    places: _Places,
    fan_out: int | None,
) -> Array:
    """Fills the places that are given an input and, with their column, a filter."""
    inputs, given = _inputs(kept, numbers, columns, places)
    inputs = jnp.broadcast_to(inputs, target.shape[-2:])
    fitted = kernels.gather_channels(kernel, inputs, filters.astype(jnp.uint32)[None])
    if fitted.shape != target.shape:
        fitted = kernels.pad_spatial(key, fitted, target.shape[:-2], fan_out)
    if given is not None:
        fitted = jnp.where(given, fitted, target.astype(fitted.dtype))
    return fitted.astype(target.dtype)
