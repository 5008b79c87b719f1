"""What can go wrong with a run, as its user can mend it."""

from tlv_jax.errors import TLVError

__all__ = ["ConfigError", "DataError", "DivergedError"]


class ConfigError(TLVError, ValueError):
    """A setting has a value with which a run cannot start."""


class DataError(TLVError, ValueError):
    """A data set is missing, damaged, or too small for the settings."""


class DivergedError(TLVError):
    """The loss of a training is no longer finite."""
