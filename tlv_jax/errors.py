"""The errors of the whole project, under one root.

Every message says where, what was expected, what came, and what to do about it.
"""

from collections.abc import Collection


class TLVError(Exception):
    """Root of every error that this project raises on purpose."""


class ParameterTreeError(TLVError, ValueError):
    """A pytree is not a tree of parameters, or a leaf of it is not usable."""


class NoSourceLayerError(TLVError, ValueError):
    """A target wants layers of a kind that the source does not have."""


class NonFiniteSourceError(TLVError, ValueError):
    """A source weight is NaN or infinite."""


class OptionError(TLVError, ValueError):
    """An option has a value that is not allowed."""


class PackageError(TLVError, ImportError):
    """An optional package is not installed."""


class PlanMismatchError(TLVError, ValueError):
    """A plan does not fit the trees that it is applied to."""


class UnknownOrderWarning(UserWarning):
    """A bare tree does not say in which order its layers are executed."""


def check_option(option: str, value: str, allowed: Collection[str]) -> None:
    """Raises an `OptionError` that lists the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise OptionError(f"{option}={value!r} is not known; expected one of {', '.join(allowed)}.")
