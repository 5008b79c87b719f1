"""The training step of `python -m train`, ready to be timed."""

from typing import Any

import jax
import numpy as np

from benchmarks.train import Step
from train.config import Config
from train.data import LabelledImages
from train.devices import find_devices, place, place_images, shardings_of
from train.networks import keys_of, make_target
from train.optimizer import make_optimizer
from train.step import Task, initial_state, make_train_step
from train.support import Support

CLASSES = 10
STATISTICS = (0.5, 0.5, 0.5)


def train_step(config: Config, support: Support | None = None, variables: Any = None) -> Step:
    """A compiled training step on all devices, which goes on from its own state.

    Args:
      config: the settings, resolved.
      support: lends features; None to train without.
      variables: of its network.
    """
    devices, keys = find_devices(config), keys_of(0)
    target = make_target(config, CLASSES, devices.dtype, keys.init)
    task = Task(target, STATISTICS, STATISTICS, devices.dtype, gathered=devices.gathered)
    optimizer = make_optimizer(1e-4, config.weight_decay, 1000)
    # Copied: the step is donated the state.
    start = jax.tree.map(np.array, target.split(target.network.params))
    state = initial_state(*start, optimizer)
    shardings = shardings_of(state, devices)
    state = place(state, shardings)
    step = jax.jit(
        make_train_step(task, optimizer, support),
        donate_argnums=0,
        out_shardings=(shardings, devices.replicated),
    )
    data = place_images(pictures(config), devices)
    rows = place(np.arange(config.batch_size, dtype=np.int32), devices.rows)
    variables = place(variables, devices.replicated)

    def take() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, keys.step, rows, data, variables))

    return take


def pictures(config: Config) -> LabelledImages:
    """As many random pictures as a batch has."""
    generator, size, count = np.random.default_rng(0), config.image_size, config.batch_size
    images = generator.integers(0, 256, (count, size, size, 3), np.uint8)
    return LabelledImages(images, generator.integers(CLASSES, size=count, dtype=np.int32))
