"""The variance rule: what it takes from a source alone, and how that comes into a target.

Each part is compiled by itself: most serve many combinations of shapes, and within one program XLA
would compute orders and draws anew for each weight that they lead to.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax import kernels
from tlv_jax.errors import check_option
from tlv_jax.selection import RANKS, SELECTIONS, argsort, draw, numbers_of_places
from tlv_jax.types import Array

__all__ = ["KeptSource", "keep_source", "place_source", "variance"]

PADS = ("zero", "init")
POOLS = ("avg", "max")


class KeptSource(NamedTuple):
    """What is kept of a source, whatever the key.

    Attributes:
      kernel: `[*s, I, O]`, no spatial axis larger than the target's, in the wider of both dtypes.
      filters: the kept filters in the order of their ranks, `[F]`; None if any may be.
      inputs: the kept inputs of each of these filters, `[K, F]`, or the same for all, `[K, 1]`;
        None if any may be.
    """

    kernel: Array
    filters: Array | None
    inputs: Array | None


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
    kept = keep_source(source, target, keep=keep, pool=pool)
    return place_source(key, kept, target, remove=remove, pad=pad, shuffle=shuffle)


def keep_source(source: Array, target: Array, *, keep: str, pool: str) -> KeptSource:
    """The first half of `variance`; of the target only shape and dtype count."""
    check_option("keep", keep, SELECTIONS)
    check_option("pool", pool, POOLS)
    spatial, pixels = target.shape[:-2], math.prod(target.shape[:-2])
    inputs, outputs = target.shape[-2:]
    # In the wider of both dtypes: rounding the source first would turn variances into ties.
    dtype = jnp.promote_types(source.dtype, target.dtype)
    fits = source.ndim == target.ndim and all(np.less_equal(source.shape[:-2], spatial))
    kernel = source if fits and dtype == source.dtype else _resized(source, spatial, pool, dtype)
    filters = thinned = None
    if keep != "random" and source.shape[-1] > outputs:
        variance = _filter_variance(kernel, pixels)[:, None]
        filters = _kept(variance, None, keep, outputs)[:, 0]
    if keep != "random" and source.shape[-2] > inputs:
        thinned = _kept(_input_variance(kernel, pixels), filters, keep, inputs)
    return KeptSource(kernel, filters, thinned)


def place_source(
    key: Array, kept: KeptSource, target: Array, *, remove: str, pad: str, shuffle: bool
) -> Array:
    """The second half of `variance`."""
    check_option("remove", remove, SELECTIONS)
    check_option("pad", pad, PADS)
    inputs, outputs = target.shape[-2:]
    pixels = math.prod(target.shape[:-2])
    choice = {"remove": remove, "shuffle": shuffle}
    sizes = (
        kept.kernel.shape[-2] if kept.inputs is None else kept.inputs.shape[0],
        kept.kernel.shape[-1] if kept.filters is None else kept.filters.shape[0],
    )
    input_order = filter_order = None
    if remove != "random" and sizes[0] < inputs:
        input_order = _order(_input_variance(target, pixels))
    if remove != "random" and sizes[1] < outputs:
        filter_order = _order(_filter_variance(target, pixels)[:, None])
    by_input = input_order, draw(key, sizes[0], inputs, outputs, salt=1, **choice)
    by_filter = filter_order, draw(key, sizes[1], outputs, 1, salt=2, **choice)
    places = _Places(sizes, (inputs, outputs), remove, shuffle)
    thinned = None
    if kept.inputs is not None:
        thinned = _kept_inputs(kept.inputs, by_input, by_filter, places)
    fan_out = kept.kernel.shape[-1] * pixels if pad == "init" else None
    return _gather(key, kept, target, thinned, by_input, by_filter, places, fan_out)


_By = tuple[Array | None, Array | None]  # order and draw, as `numbers_of_places` takes them


class _Places(NamedTuple):
    """What decides, with orders and draws, which number each place is given; static."""

    sizes: tuple[int, int]
    shape: tuple[int, int]
    remove: str
    shuffle: bool

    def inputs(self, by: _By) -> Array:
        """The numbers of the inputs, `[I', O']`, -1 for none."""
        choice = {"remove": self.remove, "shuffle": self.shuffle}
        return numbers_of_places(*by, self.sizes[0], self.shape, **choice)

    def filters(self, by: _By) -> Array:
        """The numbers of the filters, `[1, O']`, -1 for none."""
        choice = {"remove": self.remove, "shuffle": self.shuffle}
        return numbers_of_places(*by, self.sizes[1], (self.shape[1], 1), **choice).T


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resized(source: Array, spatial: tuple[int, ...], pool: str, dtype: jnp.dtype) -> Array:
    return kernels.pool_spatial(source.astype(dtype), spatial, pool=pool)


_filter_variance = jax.jit(kernels.filter_variance, static_argnums=1)
_input_variance = jax.jit(kernels.input_variance, static_argnums=1)


@jax.jit
def _order(variance: Array) -> Array:
    """The order of each column. `[N, columns]`."""
    return argsort(variance.T).T


@functools.partial(jax.jit, static_argnums=(2, 3))
def _kept(variance: Array, columns: Array | None, keep: str, count: int) -> Array:
    """What is kept in each of the columns, or of those given. `[N, O] -> [count, F]`."""
    if columns is not None and variance.shape[1] > 1:
        variance = variance[:, columns]
    return argsort(variance.T)[:, RANKS[keep](variance.shape[0], count)].T


@functools.partial(jax.jit, static_argnums=3)
def _kept_inputs(kept: Array, by_input: _By, by_filter: _By, places: _Places) -> Array:
    """The kept inputs of the places, each in the column of its filter. `[K, F] -> [I', O']`."""
    numbers, columns = places.inputs(by_input), jnp.maximum(places.filters(by_filter), 0)
    if kept.shape[1] == 1:
        columns = jnp.zeros_like(columns)
    numbers, columns = jnp.broadcast_arrays(numbers, columns)
    return kept.at[numbers, columns].get(mode="promise_in_bounds")


@functools.partial(jax.jit, static_argnums=(6, 7))
def _gather(
    key: Array,
    kept: KeptSource,
    target: Array,
    inputs: Array | None,
    by_input: _By,
    by_filter: _By,
    places: _Places,
    fan_out: int | None,
) -> Array:
    """Fills the places that are given an input and, with their column, a filter."""
    inputs = places.inputs(by_input) if inputs is None else inputs
    inputs, filters = jnp.broadcast_arrays(inputs, places.filters(by_filter))
    given = jnp.broadcast_to((inputs >= 0) & (filters >= 0), target.shape)
    filters = jnp.maximum(filters, 0)
    if kept.filters is not None:
        filters = kept.filters.at[filters].get(mode="promise_in_bounds")
    fitted = kernels.gather_channels(kept.kernel, jnp.maximum(inputs, 0), filters)
    fitted = kernels.pad_spatial(key, fitted, target.shape[:-2], fan_out)
    return jnp.where(given, fitted, target.astype(fitted.dtype)).astype(target.dtype)
