"""Re-estimate the running statistics of batch norms, which are stale after a transfer."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from tlv_jax.errors import OptionError
from tlv_jax.types import PyTree


def recompute_statistics(
    update: Callable[[PyTree, Any], PyTree], statistics: PyTree, batches: Iterable[Any]
) -> PyTree:
    """Averages the statistics of a few batches, to replace the running ones.

        >>> def update(statistics, batch):
        ...     return {"mean": 0.9 * statistics["mean"] + 0.1 * batch.mean((0, 1, 2))}
        >>> stale = {"mean": np.zeros(3, "float32")}
        >>> statistics = tlv_jax.recompute_statistics(update, stale, [images[:32], images[32:]])
        >>> bool(np.allclose(statistics["mean"], images.mean((0, 1, 2)), atol=1e-5))
        True

    For a Linen module, `update` is a call of `model.apply` that returns the new `batch_stats`:

        def update(statistics, images):
            variables = {"params": params, "batch_stats": statistics}
            _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return updated["batch_stats"]

    The same as `torch.optim.swa_utils.update_bn`. The momentum of each norm need not be known: it
    follows from how one batch changes statistics of zeros and of ones.

    Args:
      update: `(statistics, batch) -> statistics` after one training pass with that batch. Each leaf
        is a moving average `(1 - m) * old + m * batch`, with any m.
      statistics: gives structure, shapes and dtypes.
      batches: of equal size, in the type that `update` takes.

    Returns:
      A tree like `statistics`.

    Raises:
      OptionError: if there is no batch.
    """
    zeros, ones = (jax.tree.map(like, statistics) for like in (jnp.zeros_like, jnp.ones_like))
    total, momentum, count = zeros, None, 0
    for batch in batches:
        # From zeros, an update leaves m times the statistics of the batch.
        found = update(zeros, batch)
        if momentum is None:
            momentum = jax.tree.map(lambda zero, one: 1 - (one - zero), found, update(ones, batch))
        total = jax.tree.map(jnp.add, total, found)
        count += 1
    if momentum is None:
        raise OptionError("batches: expected at least one batch, got none.")
    return jax.tree.map(
        lambda leaf, m, old: (leaf / (count * m)).astype(old.dtype), total, momentum, statistics
    )
