"""Feature crossover: a frozen pretrained network lends some of its features."""

import jax
import jax.numpy as jnp

from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.types import Array


def crossover(
    key: Array,
    features: Array,
    support_features: Array,
    rate: float | Array = 0.1,
    *,
    stop_gradient: bool = True,
) -> Array:
    """Replaces each feature, with probability `rate`, by the same feature of the support network.

        >>> features, lent = np.zeros((4, 100)), np.ones((4, 100))
        >>> crossed = tlv_jax.crossover(jax.random.key(0), features, lent, rate=0.1)
        >>> crossed.sum(1).astype(int)  # how many of each example are lent
        Array([ 7, 11,  9, 13], dtype=int32)

    Source: TLVFC (2024), `uniform_crossover` in its published code. That code draws one mask for
    the whole batch and writes into the features; ours draws one for each example and returns a new
    array.

    Args:
      key: random key, consumed.
      features: `[B, D]`, of the network in training.
      support_features: `[B, D']`, of the frozen network on the same images. Where the widths
        differ, the first `min(D, D')` features take part.
      rate: probability in [0, 1] of replacing a feature.
      stop_gradient: let no gradient reach the support features. False is for a layer behind them
        that is trained.

    Returns:
      `[B, D]` in the dtype of `features`.

    Raises:
      ParameterTreeError: if the shapes are not `[B, D]` and `[B, D']`.
      OptionError: if `rate` is a number outside [0, 1].
    """
    if features.ndim != 2 or support_features.ndim != 2 or len(features) != len(support_features):
        raise ParameterTreeError(
            "crossover: expected features [B, D] and support_features [B, D'] of the same images, "
            f"got {features.shape} and {support_features.shape}. Pool and flatten them first."
        )
    # A traced rate, of a schedule, has no value yet.
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise OptionError(f"crossover: rate={rate} is not a probability in [0, 1].")
    shared = min(features.shape[1], support_features.shape[1])
    lent = support_features[:, :shared].astype(features.dtype)
    lent = jax.lax.stop_gradient(lent) if stop_gradient else lent
    lend = jax.random.bernoulli(key, rate, lent.shape)
    crossed = jnp.where(lend, lent, features[:, :shared])
    return jnp.concatenate([crossed, features[:, shared:]], axis=1)
