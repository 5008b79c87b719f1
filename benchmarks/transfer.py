"""Time of a transfer, beside an eager PyTorch loop over kernels and the package `iatransfer`.

    python -m benchmarks.transfer [--rounds 5] [--loop]

For each pair and rule: `plan` (shapes alone), `first` (the first call of a process, compilation
included), `steady` (the median of later calls, other keys), all in seconds; `x copy` is the steady
time over that of copying the target's parameters in memory, measured in turn with it. With `--loop`
the variance rule is also carried out by the obvious loop in eager PyTorch that this file contains,
once, and `x loop` says how many times faster the steady call is.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

import tlv_jax
from tlv_jax import models

PAIRS = (
    ("vgg16", "resnet18"),
    ("vgg16", "resnet50"),
    ("vgg16", "resnet152"),
    ("resnet50", "densenet121"),
)
PRESETS = {
    "variance": tlv_jax.presets.tlvfc(),
    "clip": {**tlv_jax.presets.tlvfc(), "rule": tlv_jax.rules.clip},
    "dpiat": tlv_jax.presets.dpiat(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", action="store_true", help="time the eager PyTorch loop too")
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    print(f"{kind}, {os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__}")
    print("| pair | rule | plan | first | steady | x copy | x loop |")
    print("|---|---|---|---|---|---|---|")
    for source_name, target_name in PAIRS:
        source, target = random_params(source_name, 0), random_params(target_name, 1)
        for rule, settings in PRESETS.items():
            row = measure(source, target, settings, options.rounds)
            loop = ""
            if options.loop and rule == "variance":
                start = time.perf_counter()
                eager_loop(source, target, settings)
                loop = f"{(time.perf_counter() - start) / row[2]:.0f}"
            cells = [f"{value:.3f}" for value in row[:3]] + [f"{row[3]:.1f}", loop]
            print(f"| {source_name} to {target_name} | {rule} | {' | '.join(cells)} |", flush=True)


def random_params(name: str, seed: int) -> dict:
    generator = np.random.default_rng(seed)
    shapes = models.abstract_variables(models.create(name))["params"]
    return jax.tree.map(
        lambda leaf: jax.device_put(generator.standard_normal(leaf.shape, np.float32)), shapes
    )


def measure(source: dict, target: dict, settings: dict, rounds: int) -> tuple[float, ...]:
    start = time.perf_counter()
    plan = tlv_jax.plan_transfer(source, target, **settings)
    planning = time.perf_counter() - start

    def call(seed: int) -> None:
        key = jax.random.key(seed)
        jax.block_until_ready(tlv_jax.apply_transfer(plan, key, source, target))

    copy = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree))
    jax.block_until_ready(copy(target))
    first = seconds(lambda: call(0))
    steady, copies = [], []
    for number in range(rounds):
        steady.append(seconds(lambda number=number: call(number + 1)))
        copies.append(seconds(lambda: jax.block_until_ready(copy(target))))
    median = statistics.median(steady)
    return planning, first, median, median / statistics.median(copies)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def eager_loop(source: dict, target: dict, settings: dict) -> None:
    """The variance rule as one would write it first: kernel by kernel, filter by filter.

    Interleaved keep, random remove, zero padding, average pooling, shuffle; on the same pairs.
    """
    import torch

    plan = tlv_jax.plan_transfer(source, target, **settings)
    leaves = {
        side: tlv_jax.paths.array_leaves(tree, name=side)
        for side, tree in (("source", source), ("target", target))
    }
    for pair in plan.layer_pairs:
        kernel, around = (
            torch.from_numpy(np.array(leaves[side][layer.weight]).transpose(3, 2, 0, 1).copy())
            for side, layer in (("source", pair.source), ("target", pair.target))
        )
        fit(torch, kernel, around)


def fit(torch, kernel, target):
    size, wanted = kernel.shape[-1], target.shape[-1]
    if size > wanted:
        kernel = torch.nn.functional.avg_pool2d(kernel, size - wanted + 1, stride=1)
    elif size < wanted:
        before = (wanted - size) // 2
        after = wanted - size - before
        kernel = torch.nn.functional.pad(kernel, (before, after, before, after))
    outputs, inputs = target.shape[:2]
    filters = choose(torch, [one.var() for one in kernel], outputs)
    places = torch.randperm(outputs)[: len(filters)]
    result = target.clone()
    for place, number in zip(places.tolist(), filters, strict=True):
        one = kernel[number]
        chosen = choose(torch, [pixels.var() for pixels in one], inputs)
        slots = torch.randperm(inputs)[: len(chosen)]
        for slot, channel in zip(slots.tolist(), chosen, strict=True):
            result[place, slot] = one[channel]
    result = result[torch.randperm(outputs)]
    for number in range(outputs):
        result[number] = result[number][torch.randperm(inputs)]
    return result


def choose(torch, variances: list, count: int) -> list[int]:
    """Every k-th in the order of the variances, or all of them."""
    if len(variances) <= count:
        return list(range(len(variances)))
    order = torch.argsort(torch.stack(variances).nan_to_num())
    return order[:: len(variances) // count][:count].tolist()


if __name__ == "__main__":
    main()
