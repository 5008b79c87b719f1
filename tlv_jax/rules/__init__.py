"""How one kernel is fitted into another's shape.

A rule is a function `(key, source, target) -> kernel` on kernels in Flax's layout: source
`[*spatial, I, O]`, target `[*spatial', I', O']`. The answer has the target's shape and dtype. The
library's rules are frozen dataclasses; their fields are their settings. They compute with NumPy on
NumPy arrays and with `jax.numpy` on all others. Any JAX function of the same form is a rule too:

    >>> from tlv_jax import rules
    >>> rule = rules.Variance(keep="max")
    >>> rule(jax.random.key(0), np.ones((5, 5, 8, 16)), np.zeros((3, 3, 4, 24))).shape
    (3, 3, 4, 24)
"""

from tlv_jax.rules.copying import Clip, Full, Uniform
from tlv_jax.rules.magnitude import Magnitude, Trace
from tlv_jax.rules.variance import Variance

__all__ = ["LIBRARY", "Clip", "Full", "Magnitude", "Trace", "Uniform", "Variance"]

LIBRARY = (Clip, Full, Magnitude, Trace, Uniform, Variance)
"""The rules that a plan in JSON may name."""
