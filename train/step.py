"""One training step and one evaluation step, as pure functions.

Shapes: images in memory `[N, H, W, C]` uint8, labels `[N]`, rows of a batch `[B]`, features
`[B, D]`, logits `[B, K]`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from train.augment import augment, normalize
from train.data import LabelledImages
from train.metrics import Tally, tally
from train.mixing import Mixture, mix
from train.normalization import unchanged
from train.recipe import PUBLISHED, Recipe
from train.support import Adapter, Given, Support, make_give, make_run
from train.target import Target

__all__ = [
    "AdaptedState",
    "State",
    "Task",
    "averaged",
    "cross_entropy",
    "initial_state",
    "make_eval_step",
    "make_train_step",
    "with_adapter",
]


class State(struct.PyTreeNode):
    """All that a training step changes.

    Attributes:
      step: `[]` int32, steps done.
      params: of the target.
      model_state: what training changes beside the parameters, such as running statistics.
      opt_state: the optimizer's.
      average: of the parameters over the steps; None if the recipe keeps none.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: optax.OptState
    average: Any = None

    @property
    def tested_params(self) -> Any:
        """The parameters to evaluate: their average, if one is kept."""
        return self.params if self.average is None else self.average


class AdaptedState(State):
    """The state of a training that has parameters between the source and the target.

    A class of its own: the checkpoints of all other trainings stay as they were.

    Attributes:
      adapter: these parameters, which are trained and not evaluated.
      adapter_opt_state: of their optimizer.
    """

    adapter: Any = None
    adapter_opt_state: Any = None


class Task(NamedTuple):
    """What is trained, and on what kind of images.

    Attributes:
      target: the network.
      mean: of each colour, subtracted from images.
      std: of each colour, by which images are divided.
      dtype: of the computation.
      seen_by_source: turns normalized images into those that the pretrained network expects, if it
        is normalized otherwise.
      gathered: puts parameters that are divided over the devices together before they are used.
    """

    target: Target
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: jnp.dtype
    seen_by_source: Callable[[jax.Array], jax.Array] = unchanged
    gathered: Callable[[Any], Any] = unchanged


def initial_state(
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    recipe: Recipe = PUBLISHED,
) -> State:
    """The state before the first step, of what `Target.split` gives."""
    average = params if recipe.ema else None
    return State(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), average)


def with_adapter(
    state: State, adapter: Adapter, optimizer: optax.GradientTransformation
) -> AdaptedState:
    """The state before the first step, with an adapter that is trained by its own optimizer."""
    trained: Any = adapter
    own = {field.name: getattr(state, field.name) for field in dataclasses.fields(State)}
    return AdaptedState(**own, adapter=adapter, adapter_opt_state=optimizer.init(trained))


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    support: Support | None,
    recipe: Recipe = PUBLISHED,
) -> Callable[..., tuple[State, Tally]]:
    """Builds `step(state, key, rows, images, support_variables) -> (state, tally)`.

    `rows` are those of a batch; None if the images are the batch.

    `key` is the same for all steps of a run. A step draws from `fold_in(key, state.step)`, so a
    resumed run draws what it would have drawn. The tally has the plain cross-entropy with each
    image's own label, whatever the loss of the recipe.

    Args:
      task: what is trained.
      optimizer: from `train.optimizer.make_optimizer`.
      support: lends features and teaches; None to train without, where `support_variables` is
        ignored. These are its variables, or a `Lent` with what was computed of them.
      recipe: how it is trained, beside the optimizer.
    """
    learn = _accumulated(_learner(task, support, recipe), recipe.accumulate)

    def step(
        state: State,
        key: jax.Array,
        rows: jax.Array | None,
        data: LabelledImages,
        support_variables: Any,
    ) -> tuple[State, Tally]:
        key = jax.random.fold_in(key, state.step)
        batch = data if rows is None else data[rows]
        gradients, model_state, counted = learn(state, key, batch, support_variables)
        gradients, adapter_gradients = gradients
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = averaged(average, params, recipe.ema, state.step)
        after = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            average=average,
        )
        if support is not None and support.optimizer and isinstance(state, AdaptedState):
            updates, opt_state = support.optimizer.update(
                adapter_gradients, state.adapter_opt_state, state.adapter
            )
            adapter: Any = optax.apply_updates(state.adapter, updates)
            after = after.replace(adapter=adapter, adapter_opt_state=opt_state)
        return after, counted

    return step


def _learner(task: Task, support: Support | None, recipe: Recipe) -> Callable[..., Any]:
    """Builds `learn(state, key, batch, support_variables)`.

    It returns the gradients of the loss to the parameters and the adapter, the model state after
    these images, and their tally.
    """
    give = make_give(support, recipe.crossover_mask) if support else None
    run = make_run(task.target, support)

    def learn(
        state: State, key: jax.Array, batch: LabelledImages, support_variables: Any
    ) -> tuple[Any, Any, Tally]:
        keys = jax.random.split(key, 3)
        labels = batch.labels
        images, mixture = _seen(keys[0], batch.images, labels, task, recipe)
        given = Given()
        if give is not None:
            seen = task.seen_by_source(images)
            given = give(keys[2], seen, state.step, support_variables)

        def loss_fn(trained: tuple[Any, Any]) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            params, adapter = trained
            change = given.change(adapter) if given.change else None
            inputs = params, state.model_state, images, keys[1], change
            logits, updated, activations = run(*inputs)
            losses = cross_entropy(
                logits.astype(jnp.float32), labels, recipe.label_smoothing, mixture
            )
            if given.penalty is not None:
                losses += given.penalty(logits, activations, adapter)
            return losses.mean(), (updated, logits)

        params, adapter = _trained(state)
        trained = task.gathered(params), adapter
        gradients, (model_state, logits) = jax.grad(loss_fn, has_aux=True)(trained)
        return gradients, model_state, tally(logits, labels)

    return learn


def _trained(state: State) -> tuple[Any, Any]:
    """The parameters and the adapter, or None."""
    return state.params, state.adapter if isinstance(state, AdaptedState) else None


def _accumulated(learn: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """The same as `learn`, of one part of a batch after another: less memory, more time.

    Gradients are averaged over the parts. Norms see the images of one part, and running statistics
    go on from part to part.
    """
    if parts == 1:
        return learn

    def in_parts(leaf: jax.Array) -> jax.Array:
        # A device's rows are next to each other: each part gets equally many of every device.
        return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)

    def learn_in_parts(
        state: State, key: jax.Array, batch: LabelledImages, support_variables: Any
    ) -> tuple[Any, Any, Tally]:
        def add(carry: Any, drawn: Any) -> tuple[Any, Tally]:
            model_state, total = carry
            gradients, model_state, counted = learn(
                state.replace(model_state=model_state), *drawn, support_variables
            )
            return (model_state, jax.tree.map(jnp.add, total, gradients)), counted

        drawn = jax.random.split(key, parts), jax.tree.map(in_parts, batch)
        start = state.model_state, jax.tree.map(jnp.zeros_like, _trained(state))
        (model_state, total), counted = jax.lax.scan(add, start, drawn)
        gradients = jax.tree.map(lambda leaf: leaf / parts, total)
        return gradients, model_state, jax.tree.map(lambda leaf: leaf.sum(0), counted)

    return learn_in_parts


def _seen(
    key: jax.Array, images: jax.Array, labels: jax.Array, task: Task, recipe: Recipe
) -> tuple[jax.Array, Mixture | None]:
    """What both networks see of a batch, and what its images are mixed with."""
    mixes = recipe.mixup or recipe.cutmix
    key_augment, key_mix = jax.random.split(key) if mixes else (key, None)
    images = augment(key_augment, images, recipe)
    images = normalize(images, task.mean, task.std, task.dtype)
    return (images, None) if key_mix is None else mix(key_mix, images, labels, recipe)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, mixture: Mixture | None = None
) -> jax.Array:
    """The loss of each example `[B]`, in nats.

    Args:
      logits: `[B, K]`.
      labels: int `[B]`.
      smoothing: share of each label that is spread evenly over all classes.
      mixture: what the images were mixed with, if they were.
    """
    if not smoothing and mixture is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    if mixture is not None:
        others = jax.nn.one_hot(mixture.labels, logits.shape[-1])
        targets = mixture.share * targets + (1 - mixture.share) * others
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def averaged(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The exponential moving average of the parameters after one more step.

    It is `decay * average + (1 - decay) * params`, with a decay of at most `(1 + step) / (10 +
    step)`, as in TensorFlow's: the first steps of a training are forgotten soon.

    Args:
      average: so far.
      params: after the step.
      decay: of the average.
      step: number of the step, from 0.
    """
    new = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    # Written by differences: what is frozen is its own average, bit for bit.
    return jax.tree.map(
        lambda old, now: old + (new * (now - old)).astype(old.dtype), average, params
    )


def make_eval_step(task: Task) -> Callable[..., Tally]:
    """Builds `step(params, model_state, rows, real, images) -> tally`, without crossover.

    `rows` are those of a batch; None if the images are the batch.
    """

    def step(
        params: Any, model_state: Any, rows: jax.Array | None, real: jax.Array, data: LabelledImages
    ) -> Tally:
        batch = data if rows is None else data[rows]
        images = normalize(batch.images, task.mean, task.std, task.dtype)
        logits = task.target.evaluate(task.gathered(params), model_state, images)
        return tally(logits, batch.labels, real)

    return step
