"""A run that starts from a fit on two hosts, here two processes, each with a device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import interrupted
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
HOST = """
import sys
import jax.numpy as jnp
import numpy as np
from train.config import HostOptions
from train.devices import join_hosts, of_first_process

address, rank = sys.argv[1], int(sys.argv[2])
join_hosts(HostOptions(join=True, coordinator=address, count=2, rank=rank))
tree = {"kernel": jnp.full((2, 3), rank + 0.1), "half": jnp.ones(2, jnp.bfloat16) + rank}
tree |= {"count": np.int32(rank), "name": str(rank)}
found = of_first_process(tree)
assert {name: found[name] for name in ("count", "name")} == {"count": rank, "name": str(rank)}
assert (found["kernel"].dtype, found["half"].dtype) == (jnp.float32, jnp.bfloat16)
print(np.asarray(found["kernel"]).tolist(), np.asarray(found["half"], np.float32).tolist())
"""


def test_hosts_take_the_numbers_of_the_first():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(rank)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ends
    expected = f"{np.full((2, 3), np.float32(0.1)).tolist()} [1.0, 1.0]"
    assert [output.splitlines()[-1] for output, _ in ends] == [expected] * 2


def measured(folder):
    """All that was measured in the one epoch of a run."""
    return json.loads((folder / "transferred" / "metrics.jsonl").read_text())


def test_two_hosts_start_from_the_fit_of_one(tmp_path):
    interrupted.make_inputs(tmp_path)
    options = ("--method", "fit", "--no-baseline", "--crossover-rate", "0", "--stream")
    one, two = (
        interrupted.arguments(tmp_path, tmp_path, *options, "--epochs", "1", "--name", name)
        for name in ("one", "two")
    )
    ends = [interrupted.finish(interrupted.start(one))]
    ends += [interrupted.finish(host) for host in interrupted.start_hosts(two, two)]
    assert [status for status, *_ in ends] == [0, 0, 0], ends
    found, expected = (measured(tmp_path / name) for name in ("two", "one"))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
