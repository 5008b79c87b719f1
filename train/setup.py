"""What all trainings of a run share: images on the devices, optimizers, and the evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from train.config import Config
from train.data import PARTS, Splits, train_order
from train.devices import Devices, place_images
from train.errors import DataError
from train.networks import Keys
from train.optimizer import optimizer_of
from train.recipe import Recipe, without_patterns
from train.step import Task, make_eval_step

__all__ = ["Setup", "prepare"]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all trainings of a run share.

    Attributes:
      config: the settings, resolved.
      devices: on which it runs.
      task: the target and its images.
      recipe: how it is trained.
      steps: of a training.
      splits: the images, on the devices or in files.
      optimizer: of the target's parameters.
      adapter_optimizer: of what is trained between the source and the target, if anything is.
      evaluate: the compiled evaluation step.
      order_key: draws the order of the images.
      step_key: draws what a step draws.
    """

    config: Config
    devices: Devices
    task: Task
    recipe: Recipe
    steps: int
    splits: Splits
    optimizer: optax.GradientTransformation
    adapter_optimizer: optax.GradientTransformation
    evaluate: Callable[..., Any]
    order_key: jax.Array
    step_key: jax.Array


def prepare(
    config: Config, recipe: Recipe, devices: Devices, task: Task, splits: Splits, keys: Keys
) -> Setup:
    """Puts the images on the devices, and builds what all trainings use.

    Raises:
      DataError: if there are fewer training images than a batch has, or the images do not fit into
        the memory of the devices.
    """
    steps = len(train_order(keys.order, 0, len(splits.train), config.batch_size))
    assert config.epochs is not None  # resolved
    rate = config.learning_rate
    return Setup(
        config=config,
        devices=devices,
        task=task,
        recipe=recipe,
        steps=steps * config.epochs,
        splits=splits if config.stream else _resident(splits, devices),
        optimizer=optimizer_of(config, recipe, rate, steps),
        adapter_optimizer=optimizer_of(config, without_patterns(recipe), rate, steps),
        evaluate=jax.jit(make_eval_step(task)),
        order_key=keys.order,
        step_key=keys.step,
    )


def _resident(splits: Splits, devices: Devices) -> Splits:
    """Places the images of all parts on the devices."""
    try:
        parts = {part: place_images(getattr(splits, part), devices) for part in PARTS}
    except jax.errors.JaxRuntimeError as error:
        raise DataError(
            f"The images do not fit into the memory of the devices ({str(error).splitlines()[0]}). "
            "Lower --image-size, or pass --stream if they are folders of pictures."
        ) from error
    return dataclasses.replace(splits, **parts)
