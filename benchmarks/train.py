"""Time of a whole training step: plain JAX, `tlv_jax.cpu_convolutions`, eager PyTorch.

    python -m benchmarks.train [--rounds 5] [--seconds 1] [--batch 32] [--bfloat16] [CASE ...]

A case is a network and the side of its images, such as `resnet18@72`. A step is the forward pass,
the loss, the gradient and an SGD update, with batch norm in training mode. It is in float32;
`--bfloat16` computes in bfloat16 with float32 parameters, which PyTorch does by `autocast`. PyTorch
runs torchvision's network in both memory layouts, `NCHW` and `channels-last`.

JAX and PyTorch use the same device: the first GPU if JAX has one, else the CPU. The column of
`cpu_convolutions` is there on CPUs only.

All run in one process, in turn, so that a change of load meets all of them. A turn is one step that
is not counted, then steps for about `--seconds`, of which the median is taken. The table has the
median over all rounds, and ratios of these medians. `compile` is tracing, lowering and compiling,
with JAX's caches empty. `temp` is the memory that XLA reserves for temporary arrays.

The machine has to be quiet: PyTorch's threads wait in a busy loop, and its steps take many times
longer if another program needs one of the cores. A busy machine gives a warning.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import tlv_jax
from tests.helpers import import_torchvision
from tlv_jax import models
from train.machine import device_name

CASES = (
    *("resnet18@32", "resnet18@72", "resnet18@224", "mobilenet_v2@64", "mobilenet_v2@224"),
    *("efficientnet_b0@64", "efficientnet_b0@224", "convnext_tiny@64"),
)
LAYOUTS = {"torch NCHW": torch.contiguous_format, "torch channels-last": torch.channels_last}
ON_GPU = jax.default_backend() == "gpu"
WRAPPERS: dict[str, Callable[[Any], Any]] = {"plain": lambda fn: fn}
if not ON_GPU:
    WRAPPERS["cpu_convolutions"] = tlv_jax.cpu_convolutions
OURS = list(WRAPPERS)[-1]
COLUMNS = {  # of the table, with the format of their cells
    **{f"{label} ms": ".2f" if ON_GPU else ".1f" for label in (*WRAPPERS, *LAYOUTS)},
    **{f"{OURS} / {other}": ".2f" for other in WRAPPERS if other != OURS},
    f"{OURS} / better torch": ".2f",
    **{f"compile s {label}": ".1f" for label in WRAPPERS},
    **{f"temp MB {label}": ".0f" for label in WRAPPERS},
}
CLASSES = 10
LEARNING_RATE = 1e-3
QUIET = 0.1  # cores that other programs may use

Step = Callable[[], None]
Data = tuple[np.ndarray, np.ndarray]  # images [B, H, W, 3] and labels [B]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a whole training step.")
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
    options = parser.parse_args()
    if torch.cuda.is_available() != ON_GPU:
        raise SystemExit(f"JAX runs on {jax.default_backend()!r}, but PyTorch does not.")
    jax.config.update("jax_enable_compilation_cache", False)
    torch.set_num_threads(os.cpu_count() or 1)
    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}"
    print(f"{device_name()}, {os.cpu_count()} cores, {versions}, {options.batch} images, ", end="")
    print("bfloat16\n" if options.bfloat16 else "float32\n")
    print(f"| case | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    for case in options.cases:
        cells = measure(
            case, options.rounds, options.seconds, options.batch, bfloat16=options.bfloat16
        )
        print(row(case, cells), flush=True)


def row(case: str, cells: dict[str, float]) -> str:
    return f"| {case} | {' | '.join(f'{cells[name]:{spec}}' for name, spec in COLUMNS.items())} |"


def measure(
    case: str, rounds: int, seconds: float, batch: int = 32, *, bfloat16: bool = False
) -> dict[str, float]:
    """The cells of one row, by column."""
    name, _, size = case.partition("@")
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, int(size), int(size), 3), np.float32)
    data = images, generator.integers(CLASSES, size=batch, dtype=np.int32)
    cells, steps = {}, {}
    for label, wrap in WRAPPERS.items():
        steps[label], compiling, temporary = jax_step(name, data, wrap, bfloat16)
        cells |= {f"compile s {label}": compiling, f"temp MB {label}": temporary / 1e6}
    for label, layout in LAYOUTS.items():
        steps[label] = torch_step(name, data, layout, bfloat16)
    start, before = time.perf_counter(), seconds_of_others()
    turns = [{label: turn(step, seconds) for label, step in steps.items()} for _ in range(rounds)]
    others = (seconds_of_others() - before) / (time.perf_counter() - start)
    if others > QUIET:
        print(f"{case}: other programs used {others:.1f} cores, expected none.", file=sys.stderr)
    for label in steps:
        cells[f"{label} ms"] = 1e3 * statistics.median(times[label] for times in turns)
    better = min(cells[f"{label} ms"] for label in LAYOUTS)
    cells["plain / better torch"] = cells["plain ms"] / better
    if not ON_GPU:
        fast = cells["cpu_convolutions ms"]
        cells["cpu_convolutions / plain"] = fast / cells["plain ms"]
        cells["cpu_convolutions / better torch"] = fast / better
    return {name: cells[name] for name in COLUMNS}


def seconds_of_others() -> float:
    """CPU time of all other programs so far, or 0 on systems that do not tell it."""
    try:
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    except OSError:
        return 0.0
    ticks = int(user) + int(nice) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def turn(step: Step, seconds: float) -> float:
    """The median time of a step, after one that is not counted."""
    step()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def jax_step(
    name: str, data: Data, wrap: Callable[..., Any], bfloat16: bool = False
) -> tuple[Step, float, int]:
    """A compiled step, the seconds that compiling it took, and the bytes of temporary arrays."""
    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    model = models.create(name, num_classes=CLASSES, dtype=dtype)

    def forward(params: Any, stats: Any, images: jax.Array, key: jax.Array) -> Any:
        training = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return model.apply({"params": params, "batch_stats": stats}, images, **training)

    apply = wrap(forward)

    def update(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, stats, key = state
        key, dropout = jax.random.split(key)

        def loss_of(params: Any) -> Any:
            logits, updates = apply(params, stats, images, dropout)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), updates.get("batch_stats", {})

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients)
        return (params, stats, key), loss

    images, labels = jax.device_put(data)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    state = variables["params"], variables.get("batch_stats", {}), jax.random.key(1)
    jax.clear_caches()  # else the second program finds what the first has traced
    start = time.perf_counter()
    program = jax.jit(update).lower(state, images, labels).compile()
    compiling = time.perf_counter() - start

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(program(state, images, labels))

    memory = program.memory_analysis()
    assert memory is not None  # XLA tells it for CPUs
    return step, compiling, memory.temp_size_in_bytes


def torch_step(name: str, data: Data, layout: torch.memory_format, bfloat16: bool = False) -> Step:
    """An eager step of torchvision's network."""
    device = "cuda" if ON_GPU else "cpu"
    model = import_torchvision().models.get_model(name, num_classes=CLASSES)
    model = model.to(device, memory_format=layout).train()
    images, labels = (torch.from_numpy(array).to(device) for array in data)
    images, labels = images.permute(0, 3, 1, 2).contiguous(memory_format=layout), labels.long()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    precision = torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad()
        with precision:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if ON_GPU:
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
