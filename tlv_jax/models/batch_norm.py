"""Batch normalization that keeps its running statistics as torch does."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tlv_jax.models.images import ImageError

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """Normalizes the last axis of `[..., C]` over all others.

    Differs from `flax.linen.BatchNorm` in one thing: the running variance is updated with the
    unbiased variance of the batch (divided by `n - 1`), as `torch.nn.BatchNorm2d` does, whereas
    the batch itself is normalized with the biased one in both. In layers that see few values a
    channel the two running variances differ by several percent.

    Statistics are computed and kept in float32 whatever the compute dtype. Under `jit` on a sharded
    batch they are those of the whole batch.

    Attributes:
      momentum: torch's: the weight of the new batch in the running statistics.
      epsilon: added to the variance.
      dtype: of the output.
      param_dtype: of `scale` and `bias`, each `[C]`.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalizes with the running statistics, or with the batch's when `train`.

        Args:
          inputs: `[..., C]`.
          train: normalize with the batch's statistics and update the running ones, which needs
            `mutable=["batch_stats"]`.

        Returns:
          `[..., C]` in `dtype`.

        Raises:
          ImageError: when `train` and there is only one value a channel.
        """
        channels = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        mean, var = running_mean.value, running_var.value
        # Initialization only asks for shapes, and may do so with a single small image.
        if train and not self.is_initializing():
            count = wide.size // channels
            if count < 2:
                raise ImageError(
                    f"Batch norm {'/'.join(self.path)!r} trains on {inputs.shape}, one value a "
                    "channel, which has no variance. Use a larger batch or larger images."
                )
            mean, var = _moments(wide)
            if self.is_mutable_collection("batch_stats"):
                running_mean.value = self._updated(running_mean.value, mean)
                running_var.value = self._updated(running_var.value, var * (count / (count - 1)))
        multiplier = _as_last_axis(lax.rsqrt(var + self.epsilon) * scale, wide)
        outputs = (wide - _as_last_axis(mean, wide)) * multiplier + _as_last_axis(bias, wide)
        return outputs.astype(self.dtype)

    def _updated(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        updated = (1 - self.momentum) * running + self.momentum * batch
        return updated.astype(running.dtype)


def _moments(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel. `[B, ..., C] -> [C], [C]`."""
    # Sums of x and x^2 take one pass over the activations where the two-pass formula takes two.
    # Shifted by the first example's mean, which is a few deviations away at most, they do not
    # cancel; the running mean would not do, as it says nothing about weights just transferred.
    axes = tuple(range(inputs.ndim - 1))
    shift = lax.stop_gradient(jnp.mean(inputs[:1], axes))
    shifted = inputs - _as_last_axis(shift, inputs)
    mean, mean_of_squares = jnp.mean(shifted, axes), jnp.mean(lax.square(shifted), axes)
    return mean + shift, jnp.maximum(mean_of_squares - lax.square(mean), 0.0)


def _as_last_axis(vector: jax.Array, like: jax.Array) -> jax.Array:
    """`[C] -> [1, ..., C]` in `like`'s dtype and rank, so that no rank is promoted silently."""
    return jnp.expand_dims(vector, tuple(range(like.ndim - 1))).astype(like.dtype)
