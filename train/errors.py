"""Errors of a run, which its user can fix."""

from collections.abc import Collection
from itertools import islice
from pathlib import Path
from signal import Signals

from tlv_jax.errors import TLVError

__all__ = [
    "ConfigError",
    "DataError",
    "DivergedError",
    "HostError",
    "SaveError",
    "Stopped",
    "name_some",
]


class ConfigError(TLVError, ValueError):
    """A run cannot start with this setting."""


class DataError(TLVError, ValueError):
    """A data set is missing, damaged, or too small for the settings."""


class DivergedError(TLVError):
    """The loss of a training became NaN or infinite."""


class HostError(TLVError):
    """Another host of the run failed before the training began."""


class SaveError(TLVError):
    """What a run has made cannot be written; what it saved before is intact."""


class Stopped(KeyboardInterrupt):
    """A run stopped because of a signal, and can be resumed.

    Attributes:
      folder: the run folder.
      signal: the one that asked for it; None if another host was asked.
    """

    def __init__(self, step: int, training: str, folder: Path, signal: Signals | None) -> None:
        super().__init__(
            f"Stopped after step {step} of {training!r}, which is saved in {folder}. "
            f"Resume with resume=True and name={folder.name!r}."
        )
        self.step, self.training, self.folder, self.signal = step, training, folder, signal


def name_some(names: Collection[object], count: int = 3) -> str:
    """Returns the first names, for a message, and how many more there are."""
    more = [f"{len(names) - count} more"] if len(names) > count else []
    return ", ".join([*map(str, islice(names, count)), *more]) or "none"
