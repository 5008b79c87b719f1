"""The settings of a fit."""

import dataclasses
import math

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.methods import Method


@dataclasses.dataclass(frozen=True)
class Fit:
    """The settings of a fit.

    Attributes:
      method: of the transfer whose kernels the solved ones are pulled towards; None takes
        `tlv_jax.methods.DEFAULT`.
      penalty: weight of that pull, relative to the mean variance of what a kernel reads.
      enlarge: how many times larger than the target's the images of the source are, if it is given
        none of its own. Enlarged twice, small images lend better features.
      rows: at most so many places of all images are used for each kernel, but one of each image.
      batch_size: images that the source computes at once.
      deviation: standard deviation of each solved kernel before a batch norm. The norm undoes what
        it changes, but small kernels would be overwritten by an optimizer's first steps.
    """

    method: Method | None = None
    penalty: float = 0.1
    enlarge: int = 2
    rows: int = 16384
    batch_size: int = 64
    deviation: float = 0.5

    def __post_init__(self) -> None:
        """Raises an `OptionError` for values that are not allowed."""
        for name, lowest in (("enlarge", 1), ("rows", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < lowest:
                raise OptionError(f"{name}={value!r}: expected a whole number from {lowest} on.")
        for name in ("penalty", "deviation"):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
                raise OptionError(f"{name}={value!r}: expected a finite number above 0.")


DEFAULT = Fit()
