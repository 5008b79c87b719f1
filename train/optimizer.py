"""The optimizer and the schedules of a recipe, made of Optax's parts."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tlv_jax.layers.paths import leaf_path
from train.config import Config
from train.errors import ConfigError, name_some
from train.recipe import PUBLISHED, Recipe

__all__ = [
    "check_patterns",
    "crossover_rate",
    "learning_rate",
    "make_optimizer",
    "optimizer_of",
]


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


def crossover_rate(start: float, steps: int, recipe: Recipe) -> float | optax.Schedule:
    """The probability of a crossover: the same in all steps, or linear from `start` down to 0."""
    linear = recipe.crossover_schedule == "linear"
    return optax.linear_schedule(start, 0.0, steps) if linear else start


def optimizer_of(
    config: Config, recipe: Recipe, rate: Any, steps_of_epoch: int
) -> optax.GradientTransformation:
    """Builds the optimizer of a recipe for a training as long as the settings ask.

    Args:
      config: the settings, resolved.
      recipe: may differ from that of the settings.
      rate: highest learning rate.
      steps_of_epoch: steps in an epoch.
    """
    assert config.epochs is not None  # resolved
    steps, warmup = steps_of_epoch * config.epochs, int(steps_of_epoch * recipe.warmup_epochs)
    return make_optimizer(rate, config.weight_decay, steps, recipe, warmup=warmup)


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
    optimizer = optax.chain(*clip, *rule, optax.scale_by_learning_rate(schedule))
    if recipe.freeze:
        optimizer = optax.partition(
            {"trained": optimizer, "frozen": optax.set_to_zero()},
            lambda params: _parts(params, recipe),
        )
    if recipe.rates:
        # The last factor is that of the learning rate: it multiplies the decay of AdamW too.
        factors = optax.stateless(lambda updates, params: _times_factors(updates, recipe))
        optimizer = optax.chain(optimizer, factors)
    return optimizer


def check_patterns(recipe: Recipe, params: Any) -> list[str]:
    """Checks that each pattern of a recipe is found in the path of some parameter.

    Returns:
      The paths of the parameters that are frozen.

    Raises:
      ConfigError: if one is not, if all parameters are frozen, or all whose rate a pattern changes.
    """
    paths = [leaf_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = [("freeze", pattern) for pattern in recipe.freeze]
    patterns += [("rates", pattern) for pattern, _ in recipe.rates]
    for option, pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ConfigError(
                f"recipe.{option}: {pattern!r} is found in the path of no parameter, expected a "
                f"regular expression for some of {name_some(paths, 6)}."
            )
    parts = jax.tree.leaves(_parts(params, recipe))
    if "trained" not in parts:
        raise ConfigError(
            f"recipe.freeze={list(recipe.freeze)} leaves nothing to train: all {len(paths)} "
            "parameters are frozen. Leave a pattern out."
        )
    frozen = [path for path, part in zip(paths, parts, strict=True) if part == "frozen"]
    trained = set(paths) - set(frozen)
    for pattern, factor in recipe.rates:
        if not any(re.search(pattern, path) for path in trained):
            raise ConfigError(
                f"recipe.rates: {pattern}={factor:g} does nothing, as recipe.freeze="
                f"{list(recipe.freeze)} has all its parameters. Leave one of them out."
            )
    return frozen


def _parts(params: Any, recipe: Recipe) -> Any:
    """Whether each leaf is `frozen` or `trained`."""

    def part(keys: Any, _: Any) -> str:
        path = leaf_path(keys)
        frozen = any(re.search(pattern, path) for pattern in recipe.freeze)
        return "frozen" if frozen else "trained"

    return jax.tree_util.tree_map_with_path(part, params)


def _times_factors(updates: Any, recipe: Recipe) -> Any:
    """Multiplies each update by the factor of the last pattern that is found in its path."""

    def scaled(keys: Any, update: jax.Array) -> jax.Array:
        path = leaf_path(keys)
        found = [factor for pattern, factor in recipe.rates if re.search(pattern, path)]
        return update * found[-1] if found else update

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _decaying(params: Any) -> Any:
    """Whether each leaf decays: kernels do; the vectors of norms and biases do not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
