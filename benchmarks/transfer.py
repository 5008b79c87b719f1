"""Time and memory of a transfer, beside eager PyTorch loops over kernels.

    python -m benchmarks.transfer [--rounds 9] [--loop] [--iatransfer FOLDER]

For each pair and rule, in a process of its own: `plan` (from shapes alone), `first` (the first
call, compilation included) and `steady` (the median of later calls with other keys), in seconds;
`copy`, the median of as many copies of the target's parameters in memory, made in turn with these
calls, and `x copy`, the steady time over it; `memory` is what a call takes at its peak over what
the target takes.

Times are taken in processes whose C library keeps the memory that is freed, where it is glibc: else
the pages that the system clears for one call and not for the next decide what a copy costs, and
either side may be several times slower than the other for that alone. Memory is measured in one
that gives back at once what is freed: else its peak depends on what earlier calls left behind.

The settings are `default`; `variance` and `clip`, which carry the convs as TLVFC matches them;
`tlvfc`, which also draws the head from the statistics of the source's dense layers; and `dpiat`.

With `--loop`, the variance rule is also carried out by the obvious loop in eager PyTorch that this
file contains, once. With `--iatransfer`, the clip rule is also carried out by the package of that
name, of which the folder holds the unpacked wheel (its rule needs torch alone; the rest of the
package, which needs more, is not imported). `x eager` is their time over the steady one.
"""

import argparse
import ctypes
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

import tlv_jax
from benchmarks.ablation import processor
from tlv_jax import models
from tlv_jax.paths import array_leaves

PAIRS = (
    ("vgg16", "resnet18"),
    ("vgg16", "resnet50"),
    ("vgg16", "resnet152"),
    ("resnet50", "densenet121"),
)
CONVS = tlv_jax.presets.tlvfc() | {"head": "keep"}
SETTINGS = {
    "default": {},
    "variance": CONVS,
    "clip": CONVS | {"rule": tlv_jax.rules.clip},
    "tlvfc": tlv_jax.presets.tlvfc(),
    "dpiat": tlv_jax.presets.dpiat(),
}
# Settings of glibc's malloc, as its manual names them.
KEEP_FREED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 30),
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loop", action="store_true", help="time the eager PyTorch loop too")
    parser.add_argument("--iatransfer", type=Path, help="folder of the unpacked package")
    parser.add_argument("--times", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times:
        print(json.dumps(measure_times(*options.times, options)))
        return
    if options.memory:
        print(json.dumps(measure_memory(*options.memory)))
        return
    kind = jax.devices()[0].device_kind
    machine = processor() if kind == "cpu" else kind
    print(f"{machine}, {os.cpu_count()} cores, JAX {jax.__version__}\n")
    print("| pair | settings | plan | first | steady | copy | x copy | memory | x eager |")
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in PAIRS:
        for name in SETTINGS:
            row = in_a_process("--times", *pair, name, environment=KEEP_FREED)
            row |= in_a_process("--memory", *pair, name, environment=GIVE_BACK)
            cells = [f"{row[key]:.3f}" for key in ("plan", "first", "steady", "copy")]
            cells += [f"{row['steady'] / row['copy']:.1f}", f"{row['memory']:.2f}"]
            cells.append(f"{row['eager']:.3g}" if row["eager"] else "")
            print(f"| {' to '.join(pair)} | {name} | {' | '.join(cells)} |", flush=True)


def in_a_process(*arguments: str, environment: Mapping[str, str]) -> dict[str, float]:
    """What `main` prints in a process of its own that is asked for a part of a row."""
    command = [sys.executable, "-m", "benchmarks.transfer", *sys.argv[1:], *arguments]
    variables = os.environ | environment
    run = subprocess.run(command, capture_output=True, text=True, env=variables)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def measure_memory(source_name: str, target_name: str, name: str) -> dict[str, float]:
    source, target = random_params(source_name, 0), random_params(target_name, 1)
    plan = tlv_jax.plan_transfer(source, target, **SETTINGS[name])
    first, second = jax.random.split(jax.random.key(0))
    apply(plan, first, source, target)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(target))
    return {"memory": peak(lambda: apply(plan, second, source, target)) / size}


def apply(plan: tlv_jax.TransferPlan, key: jax.Array, source: dict, target: dict) -> None:
    jax.block_until_ready(tlv_jax.apply_transfer(plan, key, source, target))


def measure_times(
    source_name: str, target_name: str, name: str, options: argparse.Namespace
) -> dict[str, float]:
    source, target = random_params(source_name, 0), random_params(target_name, 1)
    planning, plan = seconds(lambda: tlv_jax.plan_transfer(source, target, **SETTINGS[name]))
    first_key, *keys = jax.random.split(jax.random.key(0), options.rounds + 1)

    copy = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree))
    jax.block_until_ready(copy(target))
    first, _ = seconds(lambda: apply(plan, first_key, source, target))
    steady, copies = [], []
    for key in keys:
        steady.append(seconds(lambda key=key: apply(plan, key, source, target))[0])
        copies.append(seconds(lambda: jax.block_until_ready(copy(target)))[0])
    median = statistics.median(steady)
    eager = 0.0
    if options.loop and name == "variance":
        eager, _ = seconds(lambda: eager_loop(plan, source, target))
    if options.iatransfer and name == "clip":
        eager = iatransfer_clip(options.iatransfer, plan, source, target)
    return {
        "plan": planning,
        "first": first,
        "steady": median,
        "copy": statistics.median(copies),
        "eager": eager / median,
    }


def random_params(name: str, seed: int) -> dict:
    generator = np.random.default_rng(seed)
    shapes = models.abstract_variables(models.create(name))["params"]
    return jax.tree.map(
        lambda leaf: jax.device_put(generator.standard_normal(leaf.shape, np.float32)), shapes
    )


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peak(run: Callable[[], object]) -> float:
    """By how many bytes the memory of this process grows while it runs; NaN off Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return float("nan")

    def read(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    # What was freed is given back, and the peak so far forgotten.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def torch_kernels(plan: tlv_jax.TransferPlan, source: dict, target: dict) -> list[tuple]:
    """The kernels of all pairs as PyTorch lays them out."""
    import torch

    trees = {"source": source, "target": target}
    leaves = {side: array_leaves(tree, name=side) for side, tree in trees.items()}
    return [
        tuple(
            torch.from_numpy(np.array(leaves[side][layer.weight]).transpose(3, 2, 0, 1).copy())
            for side, layer in (("source", pair.source), ("target", pair.target))
        )
        for pair in plan.layer_pairs
    ]


def iatransfer_clip(folder: Path, plan: tlv_jax.TransferPlan, source: dict, target: dict) -> float:
    """Seconds that the package takes to clip all kernels, in place."""
    for name in ("iatransfer.toolkit", "iatransfer.toolkit.transfer"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.path.append(str(folder))
    module = importlib.import_module("iatransfer.toolkit.transfer.clip_transfer")
    pairs = torch_kernels(plan, source, target)
    layers = [
        [types.SimpleNamespace(weight=kernel, bias=None) for kernel in pair] for pair in pairs
    ]
    rule = module.ClipTransfer()
    return statistics.median(
        seconds(lambda: rule.transfer([tuple(pair) for pair in layers]))[0] for _ in range(5)
    )


def eager_loop(plan: tlv_jax.TransferPlan, source: dict, target: dict) -> None:
    """The variance rule as one would write it first: kernel by kernel, filter by filter.

    Interleaved keep, random remove, zero padding, average pooling, shuffle; on the same pairs.
    """
    import torch

    for kernel, around in torch_kernels(plan, source, target):
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
