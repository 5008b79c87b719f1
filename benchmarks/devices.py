"""Time of a training step on several devices, for the same batch over all of them.

    python -m benchmarks.devices [--counts 1 2 4] [--shard-params] [--batch 64] [CASE ...]

A case is a target and the side of its images, such as `resnet18@64`. The step is that of `python -m
train` with its default settings and no crossover. Each number of devices has a process of its own:
on a CPU they are simulated, on a machine with GPUs the first ones are taken. Milliseconds are the
median of steps for about `--seconds`.

Simulated devices share the cores of the CPU, so their rows say what dividing a step costs. What it
gains is seen on real devices only.
"""

import argparse
import json
import os
import subprocess
import sys

from benchmarks.steps import train_step
from benchmarks.train import turn
from train.config import Config
from train.machine import device_name
from train.resolve import resolve

CASES = ("mobilenet_v2@64", "resnet18@64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--counts", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--shard-params", action="store_true", help="divide parameters as well")
    parser.add_argument("--batch", type=int, default=64, help="images in a step")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(
            json.dumps(measure(options.only, options.batch, options.seconds, options.shard_params))
        )
        return
    print(
        "| case | devices | ms | images / s | to the first row |\n|---|---|---|---|---|", flush=True
    )
    for case in options.cases:
        first = None
        for count in options.counts:
            kind, seconds = in_a_process(case, count)
            first = first or seconds
            cells = f"{1e3 * seconds:.1f} | {options.batch / seconds:.0f} | {seconds / first:.2f}"
            print(f"| {case} | {count} x {kind} | {cells} |", flush=True)


def in_a_process(case: str, count: int) -> tuple[str, float]:
    """The kind of the devices, and the seconds of a step, as a process of its own measures them."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    visible = ",".join(map(str, range(count)))
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.devices", *sys.argv[1:], "--only", case],
        env={**os.environ, "XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": visible},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    kind, seconds = json.loads(run.stdout.splitlines()[-1])
    return kind, seconds


def measure(case: str, batch: int, seconds: float, shard_params: bool) -> tuple[str, float]:
    """The kind of all devices that JAX finds, and the seconds of a step on them."""
    name, _, size = case.partition("@")
    config = resolve(
        Config(
            target=name,
            image_size=int(size),
            batch_size=batch,
            crossover_rate=0.0,
            shard_params=shard_params,
        )
    )
    return device_name(), turn(train_step(config), seconds)


if __name__ == "__main__":
    main()
