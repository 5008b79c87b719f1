"""The variance rule: channels are kept and replaced by their variance (TLVFC, 2024).

Shapes: kernels are `[*spatial, I, O]`; a prime marks the target's size. A filter is one output
channel, `[*spatial, I]`. Channels are chosen in rows `[rows, N]` of variances: one row to choose
filters, or one row for each filter to choose its inputs.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import jax
import numpy as np

from tlv_jax.arrays import ascending, fetched, fold_in, namespace, noise, replace
from tlv_jax.errors import check_option
from tlv_jax.rules.copying import paste
from tlv_jax.types import Array

Select = Literal["max", "min", "interleaved", "two_tailed", "random"]
NONE = -1  # a place that gets no channel of the source


def ranks(how: str, size: int, count: int) -> np.ndarray:
    """The ranks of ascending variance that a choice takes: `count` of `size`. `[count]`.

    Published as `maxVar`, `minVar`, `twoTailed` and `interLeaved`. `twoTailed` fails for an odd
    count; ours takes one more of the largest. `interLeaved` takes every k-th, k = size // count,
    from rank 1, and so returns too few in some cases, such as `count == size`; ours then starts at
    rank 0.
    """
    if how == "interleaved":
        stride = size // count
        # From rank 1, unless the last would then lie beyond the end.
        start = min(1, size - 1 - stride * (count - 1))
        return start + stride * np.arange(count)
    smallest = {"max": 0, "two_tailed": count // 2, "min": count}[how]
    return np.concatenate([np.arange(smallest), np.arange(size - (count - smallest), size)])


@dataclasses.dataclass(frozen=True)
class Variance:
    """The rule of TLVFC, `VarTransfer` in its published code.

    The source is first resized to the target's spatial size. Where it has too many filters, some
    are kept by the variance of their weights; where a filter has too many inputs, the same. Where
    it has too few, it replaces channels of the target, chosen by the variance of the target's
    initial values. The rest of the target stays as it is.

    As published, `remove="two_tailed"` replaces equal numbers at both ends: of an odd number of
    source channels the last is left out.

    Departures from the published code:

    - Any kernel size works, odd growth and non-square kernels included.
    - Random choice draws without replacement and can reach the last channel. Ties go by position.
    - The inputs of a 1x1 kernel, a tie there, are ranked by their variance over all filters.
    - Where outputs grow and inputs shrink, the kept inputs go straight into the target. The
      published code goes through a random temporary kernel.
    - The shuffle moves channels of the source only. The target's own stay where they are.
    - A border of `pad="init"` does not count in the variances.

    Attributes:
      keep: which source channels are kept where there are too many: `max`, `min`, `interleaved`,
        `two_tailed` or `random` (published: `maxVar`, `minVar`, `interLeaved`, `twoTailed`,
        `random`, in `choice_method["keep"]`).
      remove: which target channels are replaced where there are too few; the same names
        (published: `choice_method["remove"]`).
      pad: what surrounds a kernel that is too small: `zero`, or `init` for He normal values
        (published: `type_pad`).
      pool: how a kernel that is too large shrinks: `avg` or `max` (published: `type_pool`).
      shuffle: permute the filters from the source, and the inputs of each filter. The published
        code always does.
    """

    keep: Select = "interleaved"
    remove: Select = "random"
    pad: Literal["zero", "init"] = "zero"
    pool: Literal["avg", "max"] = "avg"
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Raises an `OptionError` for values that are not listed above."""
        check_option("keep", self.keep, get_args(Select))
        check_option("remove", self.remove, get_args(Select))
        check_option("pad", self.pad, ("zero", "init"))
        check_option("pool", self.pool, ("avg", "max"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel. `[*spatial, I, O], [*spatial', I', O'] -> [*spatial', I', O']`."""
        xp = namespace(key, source, target)
        target = xp.asarray(target)
        *spatial, inputs, outputs = target.shape
        kernel, border = _resized(source, spatial, self.pool, xp)
        given_inputs, given_outputs = kernel.shape[-2:]
        # Words and variances are computed only where the settings ask for them.
        filters = self._filters(key, kernel, target, xp)
        source_filters = xp.maximum(filters, 0)
        # Each filter ranks its own inputs: those that it has in the source.
        narrows = given_inputs > inputs
        ranked, rows = (kernel, source_filters) if narrows else (target, slice(None))
        chosen = self._places(
            given_inputs,
            inputs,
            lambda size: noise(fold_in(key, 1), (outputs, size), xp),
            lambda: input_variance(ranked, xp)[rows],
            xp,
        ).T
        if self.pad == "init" and border.any():
            # As for a new layer, but after the channels are chosen: noise must not rank them.
            scale = np.float32(math.sqrt(2 / (given_outputs * math.prod(spatial))))
            normal = jax.random.normal(fold_in(key, 2), kernel.shape)
            kernel = xp.where(border[..., None, None], scale * fetched(normal, xp), kernel)
        # One gather: for each place the pixels of input `chosen` of filter `filters`.
        places = xp.maximum(chosen, 0) * given_outputs + source_filters[None, :]
        pixels = kernel.reshape(-1, given_inputs * given_outputs)
        taken = xp.take(pixels, places.reshape(-1), axis=1).reshape(target.shape)
        given = (chosen != NONE) & (filters != NONE)[None, :]
        return xp.where(given, taken.astype(target.dtype), target)

    def ranked_filters(
        self, key: Array, source: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The variances that choose filters, and which of them are chosen, for plots and tests.

        Args:
          key: as for a call.
          source: as for a call, `[*spatial, I, O]`.
          target: as for a call, `[*spatial', I', O']`.

        Returns:
          `[O]` of the source's filters and whether each is kept, if O >= O'; else `[O']` of the
          target's filters and whether each is replaced.
        """
        kernel, _ = _resized(source, target.shape[:-2], self.pool, np)
        filters = self._filters(key, kernel, target, np)
        if source.shape[-1] < target.shape[-1]:
            return filter_variance(target, np)[0], filters != NONE
        return filter_variance(kernel, np)[0], np.isin(np.arange(source.shape[-1]), filters)

    def _filters(self, key: Array, kernel: Any, target: Any, xp: ModuleType) -> Any:
        """Which filter of the resized source each one of the target gets, NONE for none. `[O']`."""
        given, outputs = kernel.shape[-1], target.shape[-1]
        return self._places(
            given,
            outputs,
            lambda size: noise(fold_in(key, 0), (1, size), xp),
            lambda: filter_variance(kernel if given > outputs else target, xp),
            xp,
        )[0]

    def _places(
        self,
        n: int,
        m: int,
        words: Callable[[int], Any],
        variance: Callable[[], Any],
        xp: ModuleType,
    ) -> Any:
        """Which of n source channels each of m places gets, NONE for none. int32 `[rows or 1, m]`.

        `words(size)` are random, `[rows, size]`. `variance()`, `[rows or 1, size]`, is that of the
        source's channels, or of the target's if it has more.
        """
        # Equal numbers at both ends, as published.
        odd = 1 < n < m and n % 2 == 1 and self.remove == "two_tailed"
        count = min(n, m) - odd
        how = self.keep if n > m else self.remove if n < m else None
        channels = chosen = xp.arange(count, dtype=np.int32)[None, :]
        if how == "random":
            chosen = ascending(words(max(n, m)))[:, :count]
        elif how is not None:
            chosen = ascending(variance())[:, ranks(how, max(n, m), count)]
        if n > m:
            channels = chosen
        # What was drawn at random is shuffled already.
        if self.shuffle and how != "random":
            order = ascending(words(max(n, m))[:, :count])
            channels = xp.take_along_axis(channels, order, axis=1)
        if n >= m:
            return channels
        empty = xp.full((max(len(chosen), len(channels)), m), NONE, np.int32)
        return replace(empty, (np.arange(len(empty))[:, None], chosen), channels)


def _resized(
    source: Any, spatial: Sequence[int], how: str, xp: ModuleType
) -> tuple[Any, np.ndarray]:
    """The source at the target's spatial size, in float32 at least, and where it is padded."""
    kernel = source.astype(xp.promote_types(source.dtype, np.float32), copy=False)
    kernel = pool(kernel, spatial, how, xp)
    # In the middle of zeros; an odd extra row comes last.
    border = paste(np.zeros(kernel.shape[:-2], bool), np.ones(spatial, bool))
    if border.any():
        kernel = paste(kernel, xp.zeros((*spatial, *kernel.shape[-2:]), kernel.dtype))
    return kernel, border


def pool(kernel: Any, spatial: Sequence[int], how: str, xp: ModuleType) -> Any:
    """Shrinks every spatial axis that is too large, by windows of n - m + 1 at stride 1.

    `[*S, I, O] -> [*s, I, O]`, of as many axes.
    """
    for axis, size in enumerate(spatial):
        window = kernel.shape[axis] - size + 1
        if window > 1:
            before = (slice(None),) * axis
            shifted = [kernel[(*before, slice(i, i + size))] for i in range(window)]
            kernel = functools.reduce(operator.add if how == "avg" else xp.maximum, shifted)
            kernel = kernel / np.float32(window) if how == "avg" else kernel
    return kernel


def filter_variance(kernel: Any, xp: ModuleType) -> Any:
    """The variance of each filter's weights. `[*spatial, I, O] -> float32 [1, O]`."""
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(np.float32, copy=False)
    return xp.var(weights, axis=0)[None, :]


def input_variance(kernel: Any, xp: ModuleType) -> Any:
    """The variance of the pixels of each input of each filter. `[*spatial, I, O] -> [O, I]`.

    One pixel has no variance: inputs of a 1x1 kernel are ranked by their variance over all filters.
    """
    *_, inputs, outputs = kernel.shape
    weights = kernel.reshape(-1, inputs, outputs).astype(np.float32, copy=False)
    if len(weights) == 1:
        return xp.broadcast_to(xp.var(weights[0], axis=1), (outputs, inputs))
    return xp.var(weights, axis=0).T
