"""Initialize dense layers from the pooled statistics of the source's dense layers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tlv_jax.types import Array

__all__ = ["draw_dense", "pooled_statistics"]


def pooled_statistics(kernels: Sequence[Array], targets: int) -> tuple[Array, Array]:
    """Pools the source's dense kernels into one mean and one standard deviation.

    TLVFC divides both by the number of target layers, which its paper does not explain; kept as
    published (`compute_mean_std` in its code).

    Args:
      kernels: the source's dense kernels `[I, O]`, any number above 0.
      targets: the number n of target dense layers.

    Returns:
      `(mean of the kernels' means / n, mean of their standard deviations / n)`, float32 scalars.
      The standard deviations are those of a sample (divided by the count less one), as torch's.
    """
    kernels = [kernel.astype(jnp.float32) for kernel in kernels]
    mean = sum(jnp.mean(kernel) for kernel in kernels) / len(kernels)
    # A kernel of one element has no spread; ddof=1 would make it NaN.
    spread = sum(jnp.std(kernel, ddof=min(1, kernel.size - 1)) for kernel in kernels) / len(kernels)
    return jnp.asarray(mean / targets), jnp.asarray(spread / targets)


def draw_dense(key: Array, target: Array, mean: Array, spread: Array) -> Array:
    """Draws a dense kernel from N(mean, spread). Shape and dtype are those of `target [I, O]`."""
    noise = jax.random.normal(key, target.shape, jnp.float32)
    return (mean + spread * noise).astype(target.dtype)
