"""Distillation: the frozen source teaches the target in training.

Source: Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", section 2. The source
has other classes than the task, so its own logits say little. The teacher is the source with a new
last layer, a linear classifier fitted to the training images first (`train.probe`). For hints
instead of logits see `train.hints`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.config import DistillOptions
from train.errors import ConfigError

__all__ = ["Distillation", "distillation_of", "teaching_loss"]


class Distillation(NamedTuple):
    """How the source teaches.

    Attributes:
      weight: of the teacher's loss, beside that of the labels.
      temperature: divides the logits of both.
      pairs: of layers `(source, target)`, by whose activations it teaches in place of logits.
    """

    weight: float
    temperature: float
    pairs: tuple[tuple[str, str], ...] = ()


def distillation_of(options: DistillOptions) -> Distillation | None:
    """Returns how the source teaches; None if it does not.

    Raises:
      ConfigError: for a number out of range, or one that does nothing.
    """
    for name in ("weight", "temperature"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"distill.{name}={value}, expected a number above 0.")
        if options.name == "none" and value != getattr(DistillOptions(), name):
            raise ConfigError(
                f"distill.{name}={value} does nothing for distill=none. Set distill=logits, or "
                "leave it out."
            )
    if options.name == "plan" and options.temperature != DistillOptions().temperature:
        raise ConfigError(
            f"distill.temperature={options.temperature} does nothing for distill=plan. Set "
            "distill=logits, or leave it out."
        )
    return None if options.name == "none" else Distillation(options.weight, options.temperature)


def teaching_loss(how: Distillation, teacher: jax.Array, student: jax.Array) -> jax.Array:
    """How far the student's softened answers are from the teacher's, of each example `[B]`.

    It is `weight * T^2 * KL(teacher || student)` in nats, of the softmax of logits divided by the
    temperature `T`. Its square keeps the size of the gradients for all temperatures.

    Args:
      how: the weight and the temperature.
      teacher: its logits, `[B, K]`.
      student: the target's logits, `[B, K]`.
    """
    own = jax.nn.log_softmax(student.astype(jnp.float32) / how.temperature)
    taught = jax.nn.softmax(teacher / how.temperature)
    return how.weight * how.temperature**2 * optax.kl_divergence(own, taught)
