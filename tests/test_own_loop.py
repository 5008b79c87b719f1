"""The example of a training loop of the user's own, on eight simulated devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_it_trains_on_eight_devices():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "XLA_FLAGS": flags}
    code = "from examples import own_loop; own_loop.main(steps=11, size=160, batch=16)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=True,
    )
    first, last = (float(loss) for loss in re.findall(r"loss (\d\.\d+)", run.stdout))
    assert last < first
    assert "of 32 are right, trained on 8 devices" in run.stdout
    assert not run.stderr, run.stderr


def test_it_is_short():
    assert len((ROOT / "examples" / "own_loop.py").read_text().splitlines()) <= 100
