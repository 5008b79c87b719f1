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

    Of too many output channels, and then input channels, those are kept whose absolute weights sum
    to the most, in their own order, and stand first. Too few stand first as well, and the rest of
    the target keeps its values. Spatial axes are clipped to their centres.

    Attributes:
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).
      constrained: rank inputs over the outputs already kept, not over all. The published option of
        this meaning, `input_constrained_by_output`, has no effect there, whatever its value.
    """

    keep: Extreme = "max"
    constrained: bool = False

    def __post_init__(self) -> None:
        """Refuses another value of `keep` with an `OptionError`."""
        check_option("keep", self.keep, ("max", "min"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one kernel; both have one rank. The key is not used."""
        xp = namespace(key, source, target)
        ranked = source
        for axis in (-1, -2):
            if source.shape[axis] > target.shape[axis]:
                kept = _worthiest(ranked, axis, target.shape[axis], self.keep, xp)
                source = xp.take(source, kept, axis=axis)
                if self.constrained:
                    ranked = source
        centred = [*[True] * (target.ndim - 2), False, False]
        return paste(source, xp.asarray(target), centred)


@dataclasses.dataclass(frozen=True)
class Trace:
    """Copies the outputs with the largest weights, and the inputs that the layer before kept.

    The "trace" rule of DPIAT for one kernel. Of too many output channels those are kept whose
    absolute weights sum to the most, in their own order, and stand first. All other axes are
    clipped to their centres. What the layer before kept is known to a plan alone, whose

        channels=ConsistentChannels(rank="trace")

    hands the rule a source that has the right inputs and outputs already. In a sequence of layers
    that only grow narrower this is the published rule. Beyond it, channels are followed through
    residual adds and concatenations, where the published code takes those that came last.

    Attributes:
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).
    """

    keep: Extreme = "max"

    def __post_init__(self) -> None:
        """Refuses another value of `keep` with an `OptionError`."""
        check_option("keep", self.keep, ("max", "min"))

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Fits one parameter into another's shape; both have one rank. The key is not used."""
        xp = namespace(key, source, target)
        if source.shape[-1] > target.shape[-1]:
            kept = _worthiest(source, -1, target.shape[-1], self.keep, xp)
            source = xp.take(source, kept, axis=-1)
        return paste(source, xp.asarray(target), [True] * target.ndim)


def _worthiest(kernel: Any, axis: int, count: int, keep: Extreme, xp: ModuleType) -> Any:
    """The `count` entries of an axis whose absolute weights sum to the most, in their own order."""
    others = tuple(a for a in range(kernel.ndim) if a != axis % kernel.ndim)
    sums = xp.abs(kernel.astype(np.float32, copy=False)).sum(axis=others)
    return largest(sums if keep == "max" else -sums, count, xp)
