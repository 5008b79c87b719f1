"""The optimizer of a recipe, made of Optax's parts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.recipe import PUBLISHED, Recipe

__all__ = ["learning_rate", "make_optimizer"]


def learning_rate(
    peak: float, steps: int, recipe: Recipe = PUBLISHED, *, warmup: int = 0
) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    In the steps of the warm-up it rises linearly, from `peak / (warmup + 1)`, and reaches `peak`
    in the step after. Equals torch's `LinearLR(start_factor=1 / (warmup + 1))`.

    Args:
      peak: highest rate.
      steps: all steps, with those of the warm-up.
      recipe: has the schedule.
      warmup: steps of the warm-up, fewer than `steps`.
    """
    if recipe.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps - warmup)
    else:
        decay = _step_decay(peak, steps, warmup)
    if not warmup:
        return decay
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def _step_decay(peak: float, steps: int, start: int) -> optax.Schedule:
    """The published schedule: times 0.1 at 60% and again at 80% of all steps.

    Equals torch's MultiStepLR with milestones `int(0.6 * steps)` and `int(0.8 * steps)`.

    Args:
      peak: rate before the first milestone.
      steps: all steps.
      start: the step that is counted as 0.
    """
    milestones = int(0.6 * steps), int(0.8 * steps)

    def schedule(count: Any) -> jax.Array:
        passed = jnp.sum(jnp.array([count + start >= milestone for milestone in milestones]))
        return peak * 0.1**passed

    return schedule


def make_optimizer(
    rate: float, weight_decay: float, steps: int, recipe: Recipe = PUBLISHED, *, warmup: int = 0
) -> optax.GradientTransformation:
    """Builds the optimizer of a recipe. Its AdamW and SGD are torch's.

    Args:
      rate: highest learning rate.
      weight_decay: AdamW multiplies it by the learning rate alone; SGD adds the decay to the
        gradients, before the momentum.
      steps: all steps.
      recipe: has everything else.
      warmup: steps in which the learning rate rises.
    """
    decay = optax.add_decayed_weights(weight_decay, None if recipe.decay_all else _decaying)
    if recipe.optimizer == "adamw":
        rule = [optax.scale_by_adam(), decay]
    else:
        rule = [decay, optax.trace(recipe.momentum, recipe.nesterov)]
    clip = [optax.clip_by_global_norm(recipe.clip_norm)] if recipe.clip_norm else []
    schedule = learning_rate(rate, steps, recipe, warmup=warmup)
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(schedule))


def _decaying(params: Any) -> Any:
    """Whether each leaf decays: kernels do; the vectors of norms and biases do not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
