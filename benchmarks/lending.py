"""What crossover adds to a training step, beside the forward pass of the network that lends.

    python -m benchmarks.lending [--rounds 5] [--seconds 1] [--source NAME] [CASE ...]

A case is a target and the side of its images, such as `resnet18@64`. The step is that of `python -m
train` with its default settings: images drawn from memory, augmentation, loss, gradient, AdamW.
Weights are random. `lending` is the forward pass of the source alone, on as many images, and the
last column is what crossover adds in units of it: 1 is what it has to cost.

All three run in one process, in turn, as in `benchmarks.train`. Milliseconds are medians of rounds.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tlv_jax
from benchmarks.train import Step, turn
from tlv_jax import models
from train.config import Config
from train.data import LabelledImages
from train.devices import dtype_of
from train.machine import processor
from train.networks import features_only, keys_of, make_target
from train.optimizer import make_optimizer
from train.resolve import resolve
from train.step import Task, initial_state, make_train_step
from train.support import Support

CASES = ("mobilenet_v2@64", "resnet18@64", "efficientnet_b0@64")
COLUMNS = ("step", "with crossover", "lending", "added / lending")
CLASSES = 10
STATISTICS = (0.5, 0.5, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--source", default="efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    options = parser.parse_args()
    device = jax.devices()[0]
    machine = processor() if device.platform == "cpu" else device.device_kind
    print(f"{machine}, JAX {jax.__version__}, {options.source} lends, {options.batch} images\n")
    print(f"| case | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    for case in options.cases:
        cells = measure(case, options.source, options.batch, options.rounds, options.seconds)
        print(f"| {case} | {' | '.join(f'{cells[name]:.2f}' for name in COLUMNS)} |", flush=True)


def measure(case: str, source: str, batch: int, rounds: int, seconds: float) -> dict[str, float]:
    """The cells of one row, by column; times in milliseconds."""
    name, _, size = case.partition("@")
    config = resolve(
        Config(
            source=source, target=name, image_size=int(size), batch_size=batch, crossover_rate=0.1
        )
    )
    model = features_only(models.create(source, dtype=dtype_of(config)))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, int(size), int(size), 3)))
    support = Support(model, config.crossover_rate)
    steps = {
        "step": train_step(config, None, None),
        "with crossover": train_step(config, support, variables),
        "lending": lending(config, model, variables),
    }
    turns = [{label: turn(step, seconds) for label, step in steps.items()} for _ in range(rounds)]
    cells = {label: 1e3 * statistics.median(times[label] for times in turns) for label in steps}
    added = cells["with crossover"] - cells["step"]
    return {**cells, "added / lending": added / cells["lending"]}


def train_step(config: Config, support: Support | None, variables: Any) -> Step:
    """A compiled training step that goes on from its own state."""
    dtype = dtype_of(config)
    keys = keys_of(0)
    target = make_target(config, CLASSES, dtype, keys.init)
    task = Task(target, STATISTICS, STATISTICS, dtype)
    optimizer = make_optimizer(1e-4, config.weight_decay, 1000)
    state = initial_state(*target.split(jax.tree.map(jnp.copy, target.network.params)), optimizer)
    step = jax.jit(make_train_step(task, optimizer, support), donate_argnums=0)
    data = jax.device_put(pictures(config))
    rows = jnp.arange(config.batch_size)

    def take() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, keys.step, rows, data, variables))

    return take


def lending(config: Config, model: Any, variables: Any) -> Step:
    """The compiled forward pass of the network that lends, on normalized images."""
    apply: Callable[..., Any] = tlv_jax.cpu_convolutions(model.apply)
    forward = jax.jit(lambda variables, images: apply(variables, images, method="features"))
    images = jnp.asarray(pictures(config).images / 127.5 - 1, dtype_of(config))
    return lambda: jax.block_until_ready(forward(variables, images))


def pictures(config: Config) -> LabelledImages:
    """As many random pictures as a batch has."""
    generator, size = np.random.default_rng(0), config.image_size
    images = generator.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
    return LabelledImages(
        images, generator.integers(CLASSES, size=config.batch_size, dtype=np.int32)
    )


if __name__ == "__main__":
    main()
