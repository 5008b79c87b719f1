"""Rules that rank channels by their absolute weights: DPIAT's magnitude and trace."""

import dataclasses
from types import ModuleType
from typing import Any, Literal

import numpy as np

from tlv_jax.arrays import largest, namespace
from tlv_jax.errors import check_option
from tlv_jax.rules.copying import paste
from tlv_jax.types import Array

Extreme = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """Copies the channels with the largest weights (DPIAT's "magnitude").

    Where the source has too many outputs, it keeps those with the largest sum of absolute weights,
    in their own order; then the same for inputs. What is kept stands first, and the rest of the
    target keeps its values. Spatial axes are clipped to their centres.

    Attributes:
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).
      constrained: rank inputs over the kept outputs only. The published option for this,
        `input_constrained_by_output`, has no effect.
    """

    keep: Extreme = "max"
    constrained: bool = False

    def __post_init__(self) -> None:
        """Raises an `OptionError` for another value of `keep`."""
        check_option("keep", self.keep, ("max", "min"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel into another's shape, of equal rank. The key is not used."""
        xp = namespace(key, source, target)
        *_, inputs, outputs = target.shape
        narrow = xp.take(source, _worthiest(source, -1, outputs, self.keep, xp), axis=-1)
        # As published, inputs are ranked over all outputs, those that are left out too.
        ranked = narrow if self.constrained else source
        narrow = xp.take(narrow, _worthiest(ranked, -2, inputs, self.keep, xp), axis=-2)
        return paste(narrow, xp.asarray(target), centred=target.ndim - 2)


@dataclasses.dataclass(frozen=True)
class Trace:
    """Copies the outputs with the largest weights, and the inputs that the layer before kept.

    The "trace" rule of DPIAT for one kernel. Where the source has too many outputs, it keeps those
    with the largest sum of absolute weights, in their own order, and puts them first. All other
    axes are clipped to their centres. Only a plan knows what the layer before kept:

        channels=ConsistentChannels(rank="trace")

    gives the rule a source that already has the right channels. In a sequence of layers that only
    grow narrower this is the published rule. It also follows channels through residual adds and
    concatenations, where the published code takes those that came last.

    Attributes:
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).
    """

    keep: Extreme = "max"

    def __post_init__(self) -> None:
        """Raises an `OptionError` for another value of `keep`."""
        check_option("keep", self.keep, ("max", "min"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one parameter into another's shape, of equal rank. The key is not used."""
        xp = namespace(key, source, target)
        kept = _worthiest(source, -1, target.shape[-1], self.keep, xp)
        return paste(xp.take(source, kept, axis=-1), xp.asarray(target))


def magnitudes(kernel: Any, axis: int, xp: ModuleType) -> Any:
    """The sum of absolute weights of each entry of an axis. float32 `[n]`."""
    others = tuple(a for a in range(kernel.ndim) if a != axis % kernel.ndim)
    return xp.abs(kernel.astype(np.float32, copy=False)).sum(axis=others)


def _worthiest(kernel: Any, axis: int, count: int, keep: Extreme, xp: ModuleType) -> Any:
    """The `count` entries of an axis with the largest absolute sums, in their own order; or all."""
    sums = magnitudes(kernel, axis, xp)
    return largest(sums if keep == "max" else -sums, count, xp)
