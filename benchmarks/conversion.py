"""Time and memory of reading a torch checkpoint into Flax parameters, beside plain alternatives.

    python -m benchmarks.conversion [--rounds 5] [NAME ...]

Each measurement runs in its own process, on a file of random weights in the system's page cache:
`read` reads the bytes, `torch.load` is torch's reader, `convert` is `importers.read_state_dict` and
`importers.convert`. Imports are not counted, nor is finding the network's shapes (`shapes`), which
a process does once for each architecture. A peak is the largest resident memory above that before
the measurement, over the file's size. Files are mapped, so the peak of `convert` counts their pages
too, which the system takes back when it needs memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

KINDS = ("read", "torch.load", "convert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["vgg16", "regnet_y_16gf"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, file = options.measure
        print(json.dumps(measure(kind, options.names[0], Path(file))))
        return
    print(f"{os.cpu_count()} cores; medians of {options.rounds} rounds")
    print("| network | MB | kind | seconds | x read | peak / size | shapes, seconds |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            compare(name, Path(folder), options.rounds)


def compare(name: str, folder: Path, rounds: int) -> None:
    file = folder / f"{name}.pth"
    save_random_weights(name, file)
    results = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.conversion", name]
            command += ["--measure", kind, str(file)]
            results[kind].append(json.loads(subprocess.check_output(command, text=True)))
    size = file.stat().st_size
    file.unlink()
    read = statistics.median(result["seconds"] for result in results["read"])
    for kind, measured in results.items():
        seconds = statistics.median(result["seconds"] for result in measured)
        peak = statistics.median(result["peak"] for result in measured)
        shapes = statistics.median(result["shapes"] for result in measured)
        print(
            f"| {name} | {size / 1e6:.0f} | {kind} | {seconds:.3f} | {seconds / read:.2f} "
            f"| {peak / size:.2f} | {f'{shapes:.2f}' if kind == 'convert' else ''} |"
        )


def save_random_weights(name: str, file: Path) -> None:
    import jax
    import numpy as np
    import torch

    import importers
    from tlv_jax import models

    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32),
        models.abstract_variables(models.create(name)),
    )
    torch.save(importers.export(name, variables["params"], variables.get("batch_stats")), file)


def measure(kind: str, name: str, file: Path) -> dict[str, float]:
    """Runs one kind twice and times the second.

    The first has the system bring in fresh memory, whose cost on virtual machines is large and
    varies; what is freed after it is at hand for the second.
    """
    shapes, run = prepared(kind, name, file)
    before = resident("VmRSS")
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        del result
    return {"seconds": seconds, "peak": resident("VmHWM") - before, "shapes": shapes}


def prepared(kind: str, name: str, file: Path) -> tuple[float, Callable[[], object]]:
    """What is done once, and the function to measure."""
    if kind == "read":
        return 0.0, file.read_bytes
    if kind == "torch.load":
        import torch

        return 0.0, lambda: torch.load(file, weights_only=True)
    import importers
    from importers.entries import entries_of, model_of

    start = time.perf_counter()
    entries_of(name, model_of(name, {}))
    shapes = time.perf_counter() - start
    return shapes, lambda: importers.convert(name, importers.read_state_dict(file))


def resident(field: str) -> int:
    """Bytes of memory of this process: now (`VmRSS`), or at most so far (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux.")


if __name__ == "__main__":
    main()
