"""Errors of a run, which its user can fix."""

from collections.abc import Collection
from itertools import islice

from tlv_jax.errors import TLVError

__all__ = ["ConfigError", "DataError", "DivergedError", "name_some"]


class ConfigError(TLVError, ValueError):
    """A run cannot start with this setting."""


class DataError(TLVError, ValueError):
    """A data set is missing, damaged, or too small for the settings."""


class DivergedError(TLVError):
    """The loss of a training became NaN or infinite."""


def name_some(names: Collection[object], count: int = 3) -> str:
    """Returns the first names, for a message, and how many more there are."""
    more = [f"{len(names) - count} more"] if len(names) > count else []
    return ", ".join([*map(str, islice(names, count)), *more]) or "none"
