"""Seconds from the call of `tlv_jax.transfer` to the finished tree, in a fresh process each time.

    python -m benchmarks.transfer [--runs 5] [--jit] [--loop]
        [--pairs SOURCE:TARGET ...] [--methods NAME ...]

A transfer is made once, so its first call is what a user waits for. Each row is the median of
several processes, with JAX's persistent cache off: `first` is the first call, with all that it
compiles, `second` one more with another key. Networks are traced, and random weights made, before.

The methods are `DEFAULT`, `TLVFC`, `DPIAT`, and `variance`: TLVFC without its head, which is drawn
from the statistics of the source's dense layers. With `--jit` the transfer is traced instead, once:
`compile` and `steady` are of that program. With `--loop` the obvious loop over kernels and filters
in eager PyTorch carries out the variance rule on the same pairs.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np

import tlv_jax
from tlv_jax import methods, models
from train.machine import device_name

PAIRS = (
    *("vgg16:resnet18", "vgg16:resnet50", "vgg16:resnet152"),
    "resnet50:densenet121",
)
METHODS = {
    "DEFAULT": methods.DEFAULT,
    "BARE": methods.BARE,
    "DPIAT": methods.DPIAT,
    "variance": dataclasses.replace(methods.TLVFC, head="keep"),
    "TLVFC": methods.TLVFC,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes for each row")
    parser.add_argument("--jit", action="store_true", help="time the traced form")
    parser.add_argument("--loop", action="store_true", help="time the eager PyTorch loop too")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="SOURCE:TARGET")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only, options)))
        return
    print(f"{device_name()}, {os.cpu_count()} cores, JAX {jax.__version__}\n")
    columns = ("compile", "steady") if options.jit else ("first", "second")
    columns += ("PyTorch loop",) if options.loop else ()
    print(f"| pair | method | {' | '.join(columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for pair in options.pairs:
        for name in options.methods:
            rows = [
                in_a_process(*pair.split(":"), name)
                for _ in range(1 if options.jit else options.runs)
            ]
            cells = [
                statistics.median(row.get(column, np.nan) for row in rows) for column in columns
            ]
            text = " | ".join("" if np.isnan(cell) else f"{cell:.2f}" for cell in cells)
            print(f"| {pair.replace(':', ' to ')} | {name} | {text} |", flush=True)


def in_a_process(*arguments: str) -> dict[str, float]:
    """What a process of its own measures of one row."""
    command = [sys.executable, "-m", "benchmarks.transfer", *sys.argv[1:], "--only", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def measure(
    source_name: str, target_name: str, name: str, options: argparse.Namespace
) -> dict[str, float]:
    jax.config.update("jax_enable_compilation_cache", False)
    source, target = random_network(source_name, 0), random_network(target_name, 1)
    first_key, second_key = jax.random.split(jax.random.key(0))
    method = METHODS[name]
    warnings.simplefilter("ignore", tlv_jax.SimilarityWarning)
    if options.jit:
        apply = functools.partial(
            tlv_jax.apply_transfer, tlv_jax.plan_transfer(source, target, method)
        )
        lowered, program = seconds(
            lambda: jax.jit(apply).lower(first_key, source.params, target.params).compile()
        )
        run = functools.partial(program, second_key, source.params, target.params)
        return {"compile": lowered, "steady": min(seconds(run)[0] for _ in range(5))}
    times = {
        label: seconds(lambda key=key: tlv_jax.transfer(source, target, key=key, method=method))[0]
        for label, key in (("first", first_key), ("second", second_key))
    }
    if options.loop and name == "variance":
        from benchmarks import eager_loop

        plan = tlv_jax.plan_transfer(source, target, method)
        kernels = eager_loop.torch_kernels(plan, source.params, target.params)
        times["PyTorch loop"] = seconds(lambda: eager_loop.fit_all(kernels))[0]
    return times


def random_network(name: str, seed: int) -> tlv_jax.Network:
    model = models.create(name)
    generator = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda leaf: jax.device_put(generator.standard_normal(leaf.shape, np.float32)),
        models.abstract_variables(model),
    )
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return tlv_jax.trace(model.apply, jax.block_until_ready(variables), images)


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
