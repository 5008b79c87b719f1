"""Runs of `python -m train` in processes of their own, which tests interrupt."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import small_inputs

TESTS = Path(__file__).parent
TRAININGS = ("transferred", "he")


def make_inputs(folder):
    """Photographs, and weights of a source."""
    small_inputs.save_photographs(folder / "photographs", side=8)
    small_inputs.save_source(folder / "source.safetensors")


def arguments(inputs, out, *more):
    """Of a run with 3 steps in each of 4 epochs."""
    return [
        *("--source", "squeezenet1_1", "--source-weights", f"{inputs}/source.safetensors"),
        *("--target", "small_network:Net", "--dataset", "folder", "--image-size", "32"),
        *("--data-dir", f"{inputs}/photographs", "--epochs", "4", "--batch-size", "8"),
        *("--learning-rate", "0.001", "--out", str(out), *more),
    ]


def start(arguments, devices=2, module="train"):
    """Starts the command with the flags of the tests and their cache of compiled programs."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        "JAX_COMPILATION_CACHE_DIR": str(TESTS.parent / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_hosts(*commands):
    """Starts a command on each host, here processes on one machine with one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    join = ("--hosts.join", "--hosts.coordinator", address, "--hosts.count", str(len(commands)))
    return [
        start([*command, *join, "--hosts.rank", str(rank)], devices=1)
        for rank, command in enumerate(commands)
    ]


def finish(process):
    """Waits; returns what was printed, and then the errors."""
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def wait_for(process, found):
    """Waits until `found()` is true, which it has to be before the process ends."""
    while not found():
        assert process.poll() is None, finish(process)
        time.sleep(0.001)


def checkpoints_of(folder, trainings=TRAININGS):
    """All arrays of all checkpoints of a run, by training and step."""
    arrays = {}
    for name in trainings:
        with ocp.CheckpointManager(
            folder / "checkpoints" / name, item_names=("state", "progress")
        ) as manager:
            for step in manager.all_steps():
                restored = manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
                )
                arrays[name, step] = jax.tree.map(np.asarray, restored.state)
    return arrays


def metrics_of(folder):
    """What was measured, except how long it took."""
    return {name: (folder / name / "metrics.jsonl").read_text() for name in TRAININGS}


def results_of(folder):
    """The results of the test images."""
    records = json.loads((folder / "results.json").read_text())
    return [(record["name"], record["test"], record["best_epoch"]) for record in records]


def newest(folder):
    """The names of all checkpoints, whole or not."""
    return sorted(map(str, folder.glob("*/*")))
