"""Metrics as sums, which can be merged: short batches and several devices stay exact."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["Summary", "Tally", "from_json", "merge", "summarize", "tally", "to_json"]


class Tally(NamedTuple):
    """Sums over examples; `K` is the number of classes.

    Attributes:
      loss: `[]` float32, summed cross-entropy in nats.
      correct: `[K]` int32, correctly classified examples of each class.
      examples: `[K]` int32, of each class.
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array


class Summary(NamedTuple):
    """Means over examples.

    Attributes:
      loss: mean cross-entropy in nats.
      accuracy: share of correctly classified examples.
      balanced_accuracy: mean of the accuracies of each class that occurs.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float


def tally(logits: jax.Array, labels: jax.Array, real: jax.Array | None = None) -> Tally:
    """Counts one batch.

    Args:
      logits: `[B, K]`.
      labels: int `[B]`.
      real: bool `[B]`, False for examples that only fill up the batch; all True if None.
    """
    real = jnp.ones(labels.shape, bool) if real is None else real
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    members = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.int32) * real[:, None]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
    return Tally(
        loss=jnp.sum(jnp.where(real, losses, 0)),
        correct=jnp.sum(members * right[:, None], axis=0),
        examples=jnp.sum(members, axis=0),
    )


def merge(first: Tally, second: Tally) -> Tally:
    """The tally of both."""
    return jax.tree.map(jnp.add, first, second)


def to_json(total: Tally) -> dict[str, Any]:
    """Returns the sums as JSON values, which give them back exactly."""
    return {name: np.asarray(part).tolist() for name, part in total._asdict().items()}


def from_json(values: Mapping[str, Any]) -> Tally:
    """Returns the sums that `to_json` was given."""
    return Tally(
        loss=jnp.array(values["loss"], jnp.float32),
        correct=jnp.array(values["correct"], jnp.int32),
        examples=jnp.array(values["examples"], jnp.int32),
    )


def summarize(total: Tally) -> Summary:
    """Divides the sums, and waits for them. All NaN if there is no example."""
    loss, correct, count = (np.asarray(part, np.float64) for part in jax.device_get(total))
    there = count > 0
    if not there.any():
        return Summary(float("nan"), float("nan"), float("nan"))
    return Summary(
        loss=float(loss / count.sum()),
        accuracy=float(correct.sum() / count.sum()),
        balanced_accuracy=float((correct[there] / count[there]).mean()),
    )
