"""What the variance rule does with kernels of given shapes and dtypes, without any array."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from tlv_jax.errors import check_option
from tlv_jax.permutations import Draw
from tlv_jax.selection import SELECTIONS, drawn_size

__all__ = ["Filling", "Fit", "Kernel", "Layout", "Part", "Settings", "Spec", "lay_out"]

PADS = ("zero", "init")
POOLS = ("avg", "max")
PLACES = 1 << 18  # of inputs: to a part that has as many, no target is added

T = TypeVar("T")

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of an array."""


class Settings(NamedTuple):
    """The settings of `rules.variance`."""

    keep: str
    remove: str
    pad: str
    pool: str
    shuffle: bool


class Kernel(NamedTuple):
    """A source as it is fitted.

    Attributes:
      source: its number.
      size: spatial, no axis larger than the target's.
      dtype: the wider of both.
      as_is: whether the source has both already.
    """

    source: int
    size: tuple[int, ...]
    dtype: np.dtype
    as_is: bool


class Fit(NamedTuple):
    """A kernel that comes into a target.

    Attributes:
      kernel: its number.
      given: its shape, `[*s, I, O]`.
      shape: the target's, `[*spatial, I', O']`.
      filters: how many of the kernel's filters are kept, and
      inputs: how many inputs of each.
      ranks_filters: whether they are chosen by their variance; `ranks_inputs` likewise.
      ranks_places: whether the target's filters that give way are; `ranks_input_places` likewise.
      filter_draw: the permutation of filters that is needed; None if nothing is random. Its owner
        is not known yet.
      input_draw: the permutations of inputs, one for each filter of the target, likewise.
    """

    kernel: int
    given: tuple[int, ...]
    shape: tuple[int, ...]
    filters: int
    inputs: int
    ranks_filters: bool
    ranks_inputs: bool
    ranks_places: bool
    ranks_input_places: bool
    filter_draw: Draw | None
    input_draw: Draw | None

    @property
    def pixels(self) -> int:
        """Of the kernel along with the zeros that will surround it; all count in variances."""
        return math.prod(self.shape[:-2])

    @property
    def measures_kept_alone(self) -> bool:
        """Whether it is cheaper to measure the inputs of kept filters than of all at once.

        So it is for a kernel of one pixel that will be surrounded by others.
        """
        return self.ranks_filters and math.prod(self.given[:-2]) == 1 < self.pixels

    @property
    def looks_up_once(self) -> bool:
        """Whether each filter has inputs of its own, which are the same for several pixels."""
        return self.ranks_inputs and self.pixels > 1 and math.prod(self.given[:-2]) > 1


class Filling(NamedTuple):
    """How targets are filled; one program serves all parts of which this is the same.

    Attributes:
      settings: of the rule.
      fits: one for each target; kernels are numbered among those of the part.
    """

    settings: Settings
    fits: tuple[Fit, ...]


class Part(NamedTuple):
    """Targets that are filled together.

    Attributes:
      start: the number of the first.
      fits: one for each.
      kernels: the numbers of the kernels that come into them.
      filling: of these kernels.
    """

    start: int
    fits: tuple[Fit, ...]
    kernels: tuple[int, ...]
    filling: Filling


class Layout(NamedTuple):
    """Kernels that are measured together.

    Attributes:
      settings: of the rule.
      kernels: the sources as they are fitted, each once.
      parts: all targets, in their order.
      filter_variances: numbers of the kernels whose filters are measured, and among how many
        pixels.
      input_variances: of those whose inputs are, likewise.
      shown_finite: of each source the number of the filters' variances that are finite only if it
        is; None if there are none.
      own_filter_variances: numbers of the targets whose filters are measured.
      own_input_variances: of those whose inputs are.
    """

    settings: Settings
    kernels: tuple[Kernel, ...]
    parts: tuple[Part, ...]
    filter_variances: tuple[tuple[int, int], ...]
    input_variances: tuple[tuple[int, int], ...]
    shown_finite: tuple[int | None, ...]
    own_filter_variances: tuple[int, ...]
    own_input_variances: tuple[int, ...]

    @property
    def fits(self) -> Iterator[Fit]:
        """One for each target."""
        return itertools.chain.from_iterable(part.fits for part in self.parts)


@functools.lru_cache(maxsize=1024)
def lay_out(
    settings: Settings,
    sources: tuple[Spec, ...],
    served: tuple[int, ...],
    targets: tuple[Spec, ...],
) -> Layout:
    """Says what is to be measured, ordered and drawn.

    Args:
      settings: of the rule.
      sources: shapes and dtypes.
      served: the number of the source of each target.
      targets: shapes and dtypes.

    Raises:
      OptionError: for a setting that is not known.
    """
    check_option("keep", settings.keep, SELECTIONS)
    check_option("remove", settings.remove, SELECTIONS)
    check_option("pad", settings.pad, PADS)
    check_option("pool", settings.pool, POOLS)
    kernels: dict[Kernel, int] = {}
    fits = []
    for source, target in zip(served, targets, strict=True):
        kernel = _kernel(source, sources[source], target)
        given = kernel.size + sources[source][0][-2:]
        kernel_number = kernels.setdefault(kernel, len(kernels))
        fits.append(_fit(settings, kernel_number, given, target[0]))
    measured = [fit for fit in fits if fit.ranks_inputs and not fit.measures_kept_alone]
    filter_variances = _distinct((fit.kernel, fit.pixels) for fit in fits if fit.ranks_filters)
    numbered = tuple(kernels)
    shown = {
        numbered[kernel].source: number
        for number, (kernel, _) in enumerate(filter_variances)
        if numbered[kernel].as_is or settings.pool == "avg"  # a maximum may pass over infinity
    }
    return Layout(
        settings,
        numbered,
        tuple(_parts(settings, fits)),
        filter_variances,
        _distinct((fit.kernel, fit.pixels) for fit in measured),
        tuple(map(shown.get, range(len(sources)))),
        tuple(number for number, fit in enumerate(fits) if fit.ranks_places),
        tuple(number for number, fit in enumerate(fits) if fit.ranks_input_places),
    )


def _kernel(number: int, source: Spec, target: Spec) -> Kernel:
    (*sizes, _, _), (*spatial, _, _) = source[0], target[0]
    # Missing axes come first, and so do those that are pooled away.
    aligned = [1] * (len(spatial) - len(sizes)) + sizes[max(len(sizes) - len(spatial), 0) :]
    size = tuple(map(min, aligned, spatial))
    # In the wider of both dtypes: rounding the source first would turn variances into ties.
    dtype = jnp.promote_types(source[1], target[1])
    return Kernel(number, size, dtype, size == tuple(sizes) and dtype == source[1])


def _fit(settings: Settings, kernel: int, given: tuple[int, ...], shape: tuple[int, ...]) -> Fit:
    by_variance, gives_way = settings.keep != "random", settings.remove != "random"
    (size, filters), (inputs, outputs) = given[-2:], shape[-2:]
    ranks_filters, ranks_inputs = by_variance and filters > outputs, by_variance and size > inputs
    filters, size = outputs if ranks_filters else filters, inputs if ranks_inputs else size
    choice = {"remove": settings.remove, "shuffle": settings.shuffle}
    drawn, drawn_inputs = drawn_size(filters, outputs, **choice), drawn_size(size, inputs, **choice)
    return Fit(
        kernel,
        given,
        shape,
        filters,
        size,
        ranks_filters,
        ranks_inputs,
        gives_way and filters < outputs,
        gives_way and size < inputs,
        None if drawn is None else Draw(0, drawn, 1, salt=2),
        None if drawn_inputs is None else Draw(0, drawn_inputs, outputs, salt=1),
    )


def _parts(settings: Settings, fits: Sequence[Fit]) -> Iterator[Part]:
    bounds, places = [0], 0
    for number, fit in enumerate(fits):
        if places >= PLACES:
            bounds.append(number)
            places = 0
        places += math.prod(fit.shape[-2:])
    for start, stop in itertools.pairwise([*bounds, len(fits)]):
        part = tuple(fits[start:stop])
        kernels = _distinct(fit.kernel for fit in part)
        renumbered = tuple(fit._replace(kernel=kernels.index(fit.kernel)) for fit in part)
        yield Part(start, part, kernels, Filling(settings, renumbered))


def _distinct(numbers: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(numbers))
