"""Draw dense layers from the pooled statistics of the source's dense layers (TLVFC's heads)."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from tlv_jax.arrays import fetched


def pooled_statistics(kernels: Sequence[Any], targets: int, xp: ModuleType) -> tuple[Any, Any]:
    """Pools the source's dense kernels into one mean and one standard deviation.

    As published (`compute_mean_std` in TLVFC's code), both are divided by the number of `targets`.
    The paper does not explain this.

    Returns:
      `(mean of the kernels' means / n, mean of their standard deviations / n)`, float32 scalars.
      The standard deviations are of samples (count less one), as in torch.
    """
    kernels = [kernel.astype(np.float32, copy=False) for kernel in kernels]
    mean = sum(xp.mean(kernel) for kernel in kernels) / len(kernels)
    # A kernel of one element has no spread; ddof=1 would make it NaN.
    spread = sum(xp.std(kernel, ddof=min(1, kernel.size - 1)) for kernel in kernels) / len(kernels)
    return mean / targets, spread / targets


def draw_dense(key: Any, target: Any, mean: Any, spread: Any, xp: ModuleType) -> Any:
    """Draws a dense kernel from N(mean, spread). Shape and dtype are those of `target [I, O]`."""
    normal = fetched(jax.random.normal(key, target.shape, np.float32), xp)
    return (mean + spread * normal).astype(target.dtype)
