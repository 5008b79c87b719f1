"""The frozen source within a training step: it lends features, and it teaches.

Shapes: images `[B, H, W, 3]`, features `[B, D]`, logits `[B, K]`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tlv_jax
from train.adapter import matched
from train.distillation import Distillation, teaching_loss
from train.hints import hint_loss, module_path, watched
from train.probe import Linear
from train.target import Change, Target

__all__ = ["Adapter", "Given", "Lent", "Support", "make_give", "make_lend", "make_run"]


class Support(NamedTuple):
    """The frozen pretrained network that lends its features, and may teach.

    Attributes:
      model: has a method `features`.
      rate: probability that a feature of the target is replaced; or a schedule, from the number of
        a step to it.
      distillation: how it teaches; None if it does not.
      optimizer: of the state's adapter, if it has one.
    """

    model: nn.Module
    rate: float | optax.Schedule
    distillation: Distillation | None = None
    optimizer: optax.GradientTransformation | None = None


class Adapter(NamedTuple):
    """What is trained between the source and the target, and not evaluated.

    Attributes:
      crossover: from the source's features to those that are lent; None to lend others.
      hints: of the channels of the target to those of the source, for each pair of layers.
    """

    crossover: Linear | None = None
    hints: tuple[jax.Array, ...] = ()


class Lent(NamedTuple):
    """What a step gets of the source.

    Attributes:
      variables: of the source.
      teacher: classifies its features; None if it does not teach.
      projection: takes its features to principal components, which are lent in their place; None
        if they are lent themselves.
    """

    variables: Any
    teacher: Linear | None = None
    projection: Linear | None = None


class Given(NamedTuple):
    """What the source gives for the images of one step.

    Attributes:
      change: from the state's adapter to a change of the target's features; None if none are lent.
      penalty: `(logits, activations, adapter) -> loss`, of each example or of all, beside that of
        the labels; None if the source does not teach.
    """

    change: Callable[[Adapter | None], Change] | None = None
    penalty: Callable[[jax.Array, list[jax.Array], Any], jax.Array] | None = None


def make_give(support: Support, mask: str) -> Callable[..., Given]:
    """Builds `give(key, images, step, support_variables) -> given`.

    The images are normalized as the source expects.

    Args:
      support: the source.
      mask: `example` or `batch`, for which the features to replace are drawn.
    """
    how = support.distillation
    lend = make_lend(support.model, how.pairs if how else ())

    def give(key: jax.Array, images: jax.Array, step: jax.Array, variables: Any) -> Given:
        given = variables if isinstance(variables, Lent) else Lent(variables)
        lent, hints = jax.lax.stop_gradient(lend(given.variables, images))
        change = penalty = None
        if support.rate != 0:
            rate = support.rate(step) if callable(support.rate) else support.rate
            change = functools.partial(_change, key, lent, rate, mask, given.projection)
        if how and how.pairs:
            penalty = functools.partial(_penalty_of_hints, how.weight, hints)
        elif how and given.teacher:
            taught = given.teacher.logits(lent.astype(jnp.float32))
            penalty = functools.partial(_penalty_of_logits, how, taught)
        return Given(change, penalty)

    return give


def _penalty_of_hints(
    weight: float, hints: list[jax.Array], logits: Any, activations: Any, adapter: Adapter
) -> jax.Array:
    return weight * hint_loss(activations, hints, adapter.hints)


def _penalty_of_logits(
    how: Distillation, taught: jax.Array, logits: jax.Array, activations: Any, adapter: Any
) -> jax.Array:
    return teaching_loss(how, taught, logits)


def make_run(target: Target, support: Support | None) -> Callable[..., Any]:
    """Builds `target.train`, which also returns the activations that the source gives hints for."""
    how = support.distillation if support else None
    paths = [path for _, path in how.pairs] if how else []
    if not paths:
        return lambda *inputs: (*target.train(*inputs), [])
    assert target.train_watched is not None  # checked where the layers are chosen
    return functools.partial(target.train_watched, paths=paths)


def make_lend(
    model: nn.Module, pairs: Sequence[tuple[str, str]]
) -> Callable[[Any, jax.Array], tuple[jax.Array, list[jax.Array]]]:
    """Builds what gives the features of a source, and its activations at the pairs' layers."""
    paths = [module_path(path) for path, _ in pairs]
    apply: Any = tlv_jax.cpu_convolutions(watched(model.apply, paths))
    return functools.partial(apply, method="features")


def _change(
    key: jax.Array,
    lent: jax.Array,
    rate: Any,
    mask: str,
    projection: Linear | None,
    adapter: Adapter | None,
) -> Change:
    """What crossover does to the target's features."""
    layer = adapter.crossover if adapter else None
    if layer is not None:
        lent = layer.logits(lent.astype(jnp.float32))

    def crossed(features: jax.Array, lent: jax.Array) -> jax.Array:
        return tlv_jax.crossover(key, features, lent, rate, stop_gradient=layer is None)

    def change(features: jax.Array) -> jax.Array:
        given = lent
        if projection is not None:
            given = matched(projection.logits(lent.astype(jnp.float32)), features)
        if mask == "example":
            return crossed(features, given)
        # With the same key for each example, the same features of all are replaced.
        return jax.vmap(lambda one, other: crossed(one[None], other[None])[0])(features, given)

    return change
