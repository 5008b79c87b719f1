"""The errors of the whole project, under one root.

Every message says where, what was expected, what came, and what to do about it.
"""

__all__ = [
    "NoSourceLayerError",
    "NonFiniteSourceError",
    "OptionError",
    "ParameterTreeError",
    "PlanMismatchError",
    "TLVError",
]


class TLVError(Exception):
    """Root of every error that this project raises on purpose."""


class ParameterTreeError(TLVError, ValueError):
    """A pytree is not a tree of parameters, or a leaf of it is not usable."""


class NoSourceLayerError(TLVError, ValueError):
    """A target wants layers of a kind that the source does not have."""


class NonFiniteSourceError(TLVError, ValueError):
    """A source weight is NaN or infinite."""


class OptionError(TLVError, ValueError):
    """An option has a value that the function does not know."""


class PlanMismatchError(TLVError, ValueError):
    """A plan is applied to trees that it was not made for."""
