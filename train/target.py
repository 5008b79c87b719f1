"""A network to train, as pure functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax.errors import FlaxError

import tlv_jax
from train.errors import ConfigError

__all__ = ["Change", "Target", "check_target", "modes_of"]

Change = Callable[[jax.Array], jax.Array]
"""Maps features `[B, D]` to such features."""


class Target(NamedTuple):
    """A network to train, as pure functions of its arrays.

    Shapes: images `[B, H, W, 3]`, logits `[B, K]`, features `[B, D]`.

    Attributes:
      network: traced, with the parameters it starts from; a transfer returns what its `params` are.
      split: `params of the network -> (params, state)`. What an optimizer trains, and what training
        changes beside it, such as running statistics.
      train: `(params, state, images, key, change) -> (logits, state)`. The key is for dropout.
        `change` maps the penultimate features; None leaves them.
      evaluate: `(params, state, images) -> logits`.
      train_watched: as `train`, with paths of layers as the last argument, whose activations it
        returns too; None if they cannot be had.
    """

    network: tlv_jax.Network
    split: Callable[[Any], tuple[Any, Any]]
    train: Callable[[Any, Any, jax.Array, jax.Array, Change | None], tuple[jax.Array, Any]]
    evaluate: Callable[[Any, Any, jax.Array], jax.Array]
    train_watched: Callable[..., tuple[jax.Array, Any, list[Any]]] | None = None


def modes_of(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """From whether it trains to the argument by which a module's call is told so, if it has one."""
    taken = inspect.signature(call).parameters
    for name in ("train", "training", "is_training"):
        if name in taken:
            return lambda train: {name: train}
    for name in ("deterministic", "use_running_average"):
        if name in taken:
            return lambda train: {name: not train}
    return lambda train: {}


def check_target(
    name: str, target: Target, images: jax.Array, num_classes: int, *, crossover: bool
) -> None:
    """Checks by shapes that a target can be trained.

    Args:
      name: of the target, for messages.
      target: to check.
      images: `[B, H, W, 3]`, or their shape.
      num_classes: of the data set.
      crossover: whether its penultimate features are to be changed.

    Raises:
      ConfigError: if it does not map images to one logit for each class, or its penultimate
        features are not found.
    """
    seen: list[tuple[int, ...]] = []

    def change(features: jax.Array) -> jax.Array:
        seen.append(features.shape)
        return features

    def run(images: Any) -> tuple[Any, Any]:
        params, state = target.split(target.network.params)
        logits, _ = target.train(
            params, state, images, jax.random.key(0), change if crossover else None
        )
        return logits, target.evaluate(params, state, images)

    try:
        answers = jax.eval_shape(run, images)
    except (TypeError, ValueError, FlaxError) as error:
        raise ConfigError(
            f"target={name!r}: cannot be called on images of shape {images.shape} ({error})."
        ) from error
    expected = (images.shape[0], num_classes)
    shapes = [getattr(answer, "shape", None) for answer in answers]
    if shapes != [expected, expected]:
        raise ConfigError(
            f"target={name!r}: gives {shapes[0]} in training and {shapes[1]} in evaluation for "
            f"{expected[0]} image(s) and {num_classes} classes, expected logits {list(expected)}. "
            "Let it take num_classes."
        )
    if crossover and (len(seen) != 1 or len(seen[0]) != 2):
        raise ConfigError(
            f"target={name!r}: expected one call of its last dense layer, on features [B, D], "
            f"found {seen or 'none'}. Give it methods features(images) and head(features), or set "
            "crossover_rate=0."
        )
