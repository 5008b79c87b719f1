"""One training step and one evaluation step, as pure functions.

Shapes: images in memory `[N, H, W, C]` uint8, labels `[N]`, rows of a batch `[B]`, features
`[B, D]`, logits `[B, K]`.
"""

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
      batch_stats: running statistics of the target; empty without batch norm.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
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
      model: the target, with methods `features` and `head`.
      mean: of each colour, subtracted from images as the pretrained network expects.
      std: of each colour, by which images are divided.
      dtype: of the computation.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: jnp.dtype


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


def initial_state(params: Any, batch_stats: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


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
    apply: Any = tlv_jax.cpu_convolutions(task.model.apply)  # typed by what `mutable` decides
    lend = tlv_jax.cpu_convolutions(support.model.apply) if support else None

    def step(
        state: State, key: jax.Array, rows: jax.Array, data: LabelledImages, support_variables: Any
    ) -> tuple[State, Tally]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        images, labels = data.images[rows], data.labels[rows]
        images = normalize(augment(keys[0], images), task.mean, task.std, task.dtype)
        lent: Any = None
        if lend is not None:
            lent = lend(support_variables, images, method="features")
            lent = jax.lax.stop_gradient(lent)
        # Linen folds the path of a module into the key, so that the two calls with crossover may
        # have the same key. They drop what the one call without crossover drops.
        training: Any = {"train": True, "rngs": {"dropout": keys[1]}}

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            if support is None:
                logits, updated = apply(variables, images, mutable=["batch_stats"], **training)
                # GoogLeNet and InceptionV3 also return those of auxiliary heads.
                logits = getattr(logits, "logits", logits)
            else:
                features, updated = apply(
                    variables, images, method="features", mutable=["batch_stats"], **training
                )
                features = tlv_jax.crossover(keys[2], features, lent, support.rate)
                logits = apply(variables, features, method="head", **training)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), (updated.get("batch_stats", {}), logits)

        gradients, (batch_stats, logits) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = State(state.step + 1, params, batch_stats, opt_state)
        return state, tally(logits, labels)

    return step


def make_eval_step(task: Task) -> Callable[..., Tally]:
    """Builds `step(variables, rows, real, images) -> tally`, always by plain `apply`."""
    apply: Any = tlv_jax.cpu_convolutions(task.model.apply)

    def step(variables: Any, rows: jax.Array, real: jax.Array, data: LabelledImages) -> Tally:
        images = normalize(data.images[rows], task.mean, task.std, task.dtype)
        return tally(apply(variables, images), data.labels[rows], real)

    return step
