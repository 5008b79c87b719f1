"""One training step and one evaluation step, as pure functions.

Shapes: images in memory `[N, H, W, C]` uint8, labels `[N]`, rows of a batch `[B]`, features
`[B, D]`, logits `[B, K]`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import tlv_jax
from train.augment import augment, normalize
from train.data import LabelledImages
from train.metrics import Tally, tally
from train.normalization import unchanged
from train.target import Change, Target

__all__ = [
    "State",
    "Support",
    "Task",
    "initial_state",
    "learning_rate",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
]


class State(struct.PyTreeNode):
    """All that a training step changes.

    Attributes:
      step: `[]` int32, steps done.
      params: of the target.
      model_state: what training changes beside the parameters, such as running statistics.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: optax.OptState


class Support(NamedTuple):
    """The frozen pretrained network that lends its features.

    Attributes:
      model: has a method `features`.
      rate: probability that a feature of the target is replaced.
    """

    model: nn.Module
    rate: float


class Task(NamedTuple):
    """What is trained, and on what kind of images.

    Attributes:
      target: the network.
      mean: of each colour, subtracted from images.
      std: of each colour, by which images are divided.
      dtype: of the computation.
      seen_by_source: turns normalized images into those that the pretrained network expects, if it
        is normalized otherwise.
    """

    target: Target
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: jnp.dtype
    seen_by_source: Callable[[jax.Array], jax.Array] = unchanged


def learning_rate(initial: float, steps: int) -> optax.Schedule:
    """The published schedule: times 0.1 at 60% and again at 80% of all steps.

    Equals torch's MultiStepLR with milestones `int(0.6 * steps)` and `int(0.8 * steps)`.
    """
    milestones = int(0.6 * steps), int(0.8 * steps)

    def schedule(count: Any) -> jax.Array:
        passed = jnp.sum(jnp.array([count >= milestone for milestone in milestones]))
        return initial * 0.1**passed

    return schedule


def make_optimizer(
    initial_rate: float, weight_decay: float, steps: int
) -> optax.GradientTransformation:
    """AdamW over all parameters, as torch's: the decay is multiplied by the learning rate."""
    return optax.adamw(learning_rate(initial_rate, steps), weight_decay=weight_decay)


def initial_state(params: Any, model_state: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step, of what `Target.split` gives."""
    return State(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params))


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, support: Support | None
) -> Callable[..., tuple[State, Tally]]:
    """Builds `step(state, key, rows, images, support_variables) -> (state, tally)`.

    `key` is the same for all steps of a run. A step draws from `fold_in(key, state.step)`, so a
    resumed run draws what it would have drawn.

    Args:
      task: what is trained.
      optimizer: from `make_optimizer`.
      support: lends features; None to train without crossover, where `support_variables` is
        ignored.
    """
    lend = tlv_jax.cpu_convolutions(support.model.apply) if support else None

    def step(
        state: State, key: jax.Array, rows: jax.Array, data: LabelledImages, support_variables: Any
    ) -> tuple[State, Tally]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        images, labels = data.images[rows], data.labels[rows]
        images = normalize(augment(keys[0], images), task.mean, task.std, task.dtype)
        change: Change | None = None
        if support is not None and lend is not None:
            seen = task.seen_by_source(images)
            lent: Any = jax.lax.stop_gradient(lend(support_variables, seen, method="features"))
            change = functools.partial(_crossed, keys[2], lent, support.rate)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            logits, updated = task.target.train(params, state.model_state, images, keys[1], change)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), (updated, logits)

        gradients, (model_state, logits) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = State(state.step + 1, params, model_state, opt_state)
        return state, tally(logits, labels)

    return step


def _crossed(key: jax.Array, lent: jax.Array, rate: float, features: jax.Array) -> jax.Array:
    return tlv_jax.crossover(key, features, lent, rate)


def make_eval_step(task: Task) -> Callable[..., Tally]:
    """Builds `step(params, model_state, rows, real, images) -> tally`, without crossover."""

    def step(
        params: Any, model_state: Any, rows: jax.Array, real: jax.Array, data: LabelledImages
    ) -> Tally:
        images = normalize(data.images[rows], task.mean, task.std, task.dtype)
        logits = task.target.evaluate(params, model_state, images)
        return tally(logits, data.labels[rows], real)

    return step
