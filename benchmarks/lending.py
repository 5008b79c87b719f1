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

import tlv_jax
from benchmarks.steps import pictures, train_step
from benchmarks.train import Step, turn
from tlv_jax import models
from train.config import Config
from train.devices import dtype_of
from train.machine import device_name
from train.networks import features_only
from train.resolve import resolve
from train.support import Support

CASES = ("mobilenet_v2@64", "resnet18@64", "efficientnet_b0@64")
COLUMNS = ("step", "with crossover", "lending", "added / lending")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--source", default="efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    options = parser.parse_args()
    versions = f"{device_name()}, JAX {jax.__version__}"
    print(f"{versions}, {options.source} lends, {options.batch} images\n")
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
        "step": train_step(config),
        "with crossover": train_step(config, support, variables),
        "lending": lending(config, model, variables),
    }
    turns = [{label: turn(step, seconds) for label, step in steps.items()} for _ in range(rounds)]
    cells = {label: 1e3 * statistics.median(times[label] for times in turns) for label in steps}
    added = cells["with crossover"] - cells["step"]
    return {**cells, "added / lending": added / cells["lending"]}


def lending(config: Config, model: Any, variables: Any) -> Step:
    """The compiled forward pass of the network that lends, on normalized images."""
    apply: Callable[..., Any] = tlv_jax.cpu_convolutions(model.apply)
    forward = jax.jit(lambda variables, images: apply(variables, images, method="features"))
    images = jnp.asarray(pictures(config).images / 127.5 - 1, dtype_of(config))
    return lambda: jax.block_until_ready(forward(variables, images))


if __name__ == "__main__":
    main()
