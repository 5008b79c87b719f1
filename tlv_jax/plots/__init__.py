"""Draw plans, transfers, fits and trainings with matplotlib, which is optional.

    >>> plan = tlv_jax.plan_transfer(src, dst)
    >>> tlv_jax.plots.plan(plan, src, dst)  # save it by .savefig("plan.png")
    <Figure size 2000x...>

Each function returns a `matplotlib.figure.Figure`, 2,000 pixels wide if saved as it is. None is
known to pyplot, so none is shown or kept alive. Markers and styles of lines tell apart what colours
do, so that all can be read in black and white.
"""

from tlv_jax.plots.columns import plan
from tlv_jax.plots.curves import curves
from tlv_jax.plots.kernels import first_kernels, variances
from tlv_jax.plots.layers import deviations, fitted
from tlv_jax.plots.masks import crossover

__all__ = [
    "crossover",
    "curves",
    "deviations",
    "first_kernels",
    "fitted",
    "plan",
    "variances",
]
