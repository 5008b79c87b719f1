"""The script that measures on a GPU: all of it runs, in its small setting, on this machine."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"
COUNT = 300


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    path.write_bytes(gzip.compress(header + array.tobytes()))


def run(*arguments, **environment):
    return subprocess.run(
        ["sh", SCRIPT, *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_every_measurement_leaves_its_rows(tmp_path):
    images = tmp_path / "fashion-mnist"
    images.mkdir()
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pictures = generator.integers(0, 256, (COUNT, 28, 28), np.uint8)
        labels = np.arange(COUNT, dtype=np.uint8) % 10
        write_idx(images / f"{part}-images-idx3-ubyte.gz", pictures)
        write_idx(images / f"{part}-labels-idx1-ubyte.gz", labels)
    results = tmp_path / "results"
    done = run("run", TINY="1", CARRY=str(tmp_path), RESULTS=str(results))
    assert done.returncode == 0, done.stderr
    assert "ended with status" not in done.stderr, done.stderr
    for name, row in {
        "transfer": "| vgg11 to squeezenet1_1 | DEFAULT |",
        "train": "| resnet18@32 |",
        "lending": "| resnet18@32 |",
        "compare-resnet18": "| probe |",
    }.items():
        assert row in (results / f"{name}.txt").read_text()
    rows = (results / "resnet18" / "rows.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["start", "he", "default", "probe"]


def test_what_to_do_has_to_be_said():
    done = run()
    assert done.returncode == 2
    assert "expected: sh benchmarks/gpu.sh prepare, or run" in done.stderr
