"""Errors of a run, which its user can fix."""

from tlv_jax.errors import TLVError

__all__ = ["ConfigError", "DataError", "DivergedError"]


class ConfigError(TLVError, ValueError):
    """A run cannot start with this setting."""


class DataError(TLVError, ValueError):
    """A data set is missing, damaged, or too small for the settings."""


class DivergedError(TLVError):
    """The loss of a training became NaN or infinite."""
