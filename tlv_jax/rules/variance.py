"""The variance rule: channels are kept, and give way, by their variance (TLVFC, 2024).

Shapes: kernels are `[*spatial, I, O]`; a prime marks the target's size. A filter is one output
channel, `[*spatial, I]`. Channels are chosen in rows: `[rows, N]` are the variances of N candidates,
one row for all filters together, or one row a filter for its inputs.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import jax
import numpy as np

from tlv_jax.arrays import ascending, namespace, noise, replace
from tlv_jax.errors import check_option
from tlv_jax.types import Array

Select = Literal["max", "min", "interleaved", "two_tailed", "random"]
NONE = -1  # a place that no channel of the source comes to


def max_ranks(size: int, count: int) -> np.ndarray:
    """The `count` largest. Published as `maxVar`."""
    return np.arange(size - count, size)


def min_ranks(size: int, count: int) -> np.ndarray:
    """The `count` smallest. Published as `minVar`."""
    del size
    return np.arange(count)


def interleaved_ranks(size: int, count: int) -> np.ndarray:
    """Every k-th, k = size // count.

    Published as `interLeaved`, which starts at rank 1 and so comes out one short where that leaves
    too few ranks (`count == size` among them). Ours then starts at rank 0.
    """
    stride = size // count
    start = min(1, size - 1 - stride * (count - 1))
    return start + stride * np.arange(count)


def two_tailed_ranks(size: int, count: int) -> np.ndarray:
    """Half from either end.

    Published as `twoTailed`. An odd `count`, on which the published code fails, takes its extra one
    from the upper end.
    """
    lower = count // 2
    return np.concatenate([np.arange(lower), np.arange(size - (count - lower), size)])


RANKS: Mapping[str, Callable[[int, int], np.ndarray]] = MappingProxyType(
    {
        "max": max_ranks,
        "min": min_ranks,
        "interleaved": interleaved_ranks,
        "two_tailed": two_tailed_ranks,
    }
)
"""Which ranks of ascending variance a choice takes: `(N, count) -> ranks [count]`."""


@dataclasses.dataclass(frozen=True)
class Variance:
    """The rule of TLVFC, which its published code calls `VarTransfer`.

    The source is resized to the target's spatial size. Where it has too many output channels, some
    are kept by the variance of their weights; too many inputs are thinned in the same way, for each
    filter on its own. Where it has too few, it takes the place of channels of the target, chosen by
    the variance of the target's own initial values, and the rest of the target stays as it is.

    As published, `remove="two_tailed"` places equal numbers at either end, so that of an odd number
    of source channels the last finds no place.

    Departures from the published code: any kernel size, odd growth and non-square ones included;
    random choice draws without replacement and can reach the last channel; ties go by position. The
    inputs of a 1x1 kernel, which tie in the published code, are ranked by their variance over all
    filters. To grow the outputs while shrinking the inputs, the source is thinned and placed in the
    target, where the published code goes through a freshly drawn temporary kernel. The shuffle
    decides which channel of the source comes to which place; what the target keeps of its own stays
    where it is. A border of `pad="init"` has no say in the order of the variances.

    Attributes:
      keep: which source channels stay where there are too many: `max`, `min`, `interleaved`,
        `two_tailed` or `random` (published: `maxVar`, `minVar`, `interLeaved`, `twoTailed`,
        `random`, the value `keep` of `choice_method`).
      remove: which target channels give way where there are too few; the same names (published: the
        value `remove` of `choice_method`).
      pad: what surrounds a kernel that is too small: `zero`, or `init` for He normal values
        (published: `type_pad`).
      pool: how a kernel that is too large shrinks: `avg` or `max` (published: `type_pool`).
      shuffle: permute the filters that come from the source, and the inputs of each on its own. The
        published code always does.
    """

    keep: Select = "interleaved"
    remove: Select = "random"
    pad: Literal["zero", "init"] = "zero"
    pool: Literal["avg", "max"] = "avg"
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuses values that are not listed above with an `OptionError`."""
        check_option("keep", self.keep, (*RANKS, "random"))
        check_option("remove", self.remove, (*RANKS, "random"))
        check_option("pad", self.pad, ("zero", "init"))
        check_option("pool", self.pool, ("avg", "max"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel. `[*spatial, I, O], [*spatial', I', O'] -> [*spatial', I', O']`."""
        xp = namespace(key, source, target)
        target = xp.asarray(target)
        *spatial, inputs, outputs = target.shape
        kernel = source.astype(xp.promote_types(source.dtype, np.float32), copy=False)
        kernel, border = pad(pool(kernel, spatial, self.pool, xp), spatial, xp)
        given_inputs, given_outputs = kernel.shape[-2:]

        def words(number: int, rows: int, *sizes: int) -> Any:
            return noise(jax.random.fold_in(key, number), (rows, max(sizes)), xp)

        filters = self._places(
            (given_outputs, outputs),
            lambda: words(0, 1, given_outputs, outputs),
            lambda: filter_variance(kernel, xp),
            lambda: filter_variance(target, xp),
            xp,
        )[0]
        source_filters = xp.maximum(filters, 0)
        chosen = self._places(
            (given_inputs, inputs),
            lambda: words(1, outputs, given_inputs, inputs),
            lambda: input_variance(kernel, xp)[source_filters],
            lambda: input_variance(target, xp),
            xp,
        ).T
        if self.pad == "init" and border.any():
            scale = np.float32(math.sqrt(2 / (given_outputs * math.prod(spatial))))
            normal = jax.random.normal(jax.random.fold_in(key, 2), kernel.shape)
            kernel = xp.where(border[..., None, None], scale * xp.asarray(normal), kernel)
        # One gather of pixels: input number `chosen` of filter number `filters`, for each place.
        places = xp.maximum(chosen, 0) * given_outputs + source_filters[None, :]
        pixels = kernel.reshape(-1, given_inputs * given_outputs)
        taken = xp.take(pixels, places.reshape(-1), axis=1).reshape(target.shape)
        given = (chosen != NONE) & (filters != NONE)[None, :]
        return xp.where(given, taken.astype(target.dtype), target)

    def _places(
        self,
        sizes: tuple[int, int],
        words: Callable[[], Any],
        source_variance: Callable[[], Any],
        target_variance: Callable[[], Any],
        xp: ModuleType,
    ) -> Any:
        """The source channel that comes to each place of an axis, NONE where none does.

        Args:
          sizes: `(N, M)`, how many channels the source gives, and how many places there are.
          words: random ones, `[rows, max(N, M)]`; like the variances only asked for where needed.
          source_variance: `[rows, N]`, or one row for all.
          target_variance: `[rows, M]`, or one row for all.
          xp: NumPy or `jax.numpy`.

        Returns:
          int32 `[rows or 1, M]`.
        """
        n, m = sizes
        count = n - n % 2 if n < m and n > 1 and self.remove == "two_tailed" else min(n, m)
        if n > m:
            channels = choose(self.keep, count, words, source_variance)
        else:
            channels = xp.arange(count, dtype=np.int32)[None, :]
        by_chance = self.keep if n > m else self.remove if n < m else None
        if self.shuffle and by_chance != "random":
            order = ascending(words()[:, :count])
            rows = max(len(order), len(channels))
            channels = xp.broadcast_to(channels, (rows, count))
            channels = xp.take_along_axis(channels, xp.broadcast_to(order, (rows, count)), axis=1)
        if n >= m:
            return channels
        places = choose(self.remove, count, words, target_variance)
        empty = xp.full((max(len(places), len(channels)), m), NONE, np.int32)
        return replace(empty, (np.arange(len(empty))[:, None], places), channels)


def choose(how: Select, count: int, words: Callable[[], Any], variance: Callable[[], Any]) -> Any:
    """Chooses `count` of N channels in each row. `-> int32 [rows, count]`."""
    if how == "random":
        return ascending(words())[:, :count]
    order = ascending(variance())
    return order[:, RANKS[how](order.shape[-1], count)]


def pool(kernel: Any, spatial: Sequence[int], how: str, xp: ModuleType) -> Any:
    """Shrinks every spatial axis that is too large, by windows of n - m + 1 at stride 1.

    Args:
      kernel: `[*S, I, O]`. With fewer spatial axes than the target it is taken to have size 1 along
        the missing, leading ones; with more, the superfluous leading ones are pooled away.
      spatial: the target's spatial sizes.
      how: `avg` or `max`.
      xp: NumPy or `jax.numpy`.

    Returns:
      `[*s, I, O]` of the target's rank, no axis larger than the target's.
    """
    missing = len(spatial) - (kernel.ndim - 2)
    kernel = kernel.reshape((1,) * missing + kernel.shape)
    for axis, size in enumerate((1,) * -missing + tuple(spatial)):
        window = kernel.shape[axis] - size + 1
        if window > 1:
            before = (slice(None),) * axis
            shifted = [kernel[(*before, slice(i, i + size))] for i in range(window)]
            if how == "avg":
                kernel = functools.reduce(operator.add, shifted) / np.float32(window)
            else:
                kernel = functools.reduce(xp.maximum, shifted)
    return kernel.reshape(kernel.shape[-2 - len(spatial) :])


def pad(kernel: Any, spatial: Sequence[int], xp: ModuleType) -> tuple[Any, np.ndarray]:
    """Surrounds a kernel with zeros up to its target size; an odd extra row comes last.

    Returns:
      `[*spatial, I, O]`, and which of its pixels were added, `[*spatial]`.
    """
    widths = [
        ((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(kernel.shape, spatial, strict=False)
    ]
    inside = (slice(before, m - after) for (before, after), m in zip(widths, spatial, strict=True))
    border = np.ones(spatial, bool)
    border[tuple(inside)] = False
    return (xp.pad(kernel, [*widths, (0, 0), (0, 0)]) if border.any() else kernel), border


def filter_variance(kernel: Any, xp: ModuleType) -> Any:
    """The variance of each filter's weights. `[*spatial, I, O] -> float32 [1, O]`."""
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(np.float32, copy=False)
    return xp.var(weights, axis=0)[None, :]


def input_variance(kernel: Any, xp: ModuleType) -> Any:
    """The variance of the pixels of each input of each filter. `[*spatial, I, O] -> [O, I]`.

    A kernel of one pixel has one weight for an input and a filter, and so no variance: its inputs
    are ranked by the variance of their weights over all filters, the same for each.
    """
    *_, inputs, outputs = kernel.shape
    weights = kernel.reshape(-1, inputs, outputs).astype(np.float32, copy=False)
    if len(weights) == 1:
        return xp.broadcast_to(xp.var(weights[0], axis=1), (outputs, inputs))
    return xp.var(weights, axis=0).T
