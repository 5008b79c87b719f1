"""The same training on any number of simulated devices, its state divided over them or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import interrupted
import numpy as np
import pytest

TESTS = Path(__file__).parent
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # losses near 0.7, shares of right answers, numbers of epochs


def train_on(folder, *runs):
    """What each run of `on_devices.py` gives, in one process: its start costs seconds."""
    run = subprocess.run(
        [sys.executable, TESTS / "on_devices.py", folder, *runs],
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS.parent),
            "JAX_COMPILATION_CACHE_DIR": str(TESTS.parent / ".cache" / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stdout=subprocess.PIPE,
        timeout=400,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return train_on(tmp_path_factory.mktemp("runs"), "1", "8", "8s<8s")


def test_eight_devices_give_what_one_gives(results):
    assert len(results["1"]["measured"]) == 17  # of two epochs and the test
    np.testing.assert_allclose(results["8"]["measured"], results["1"]["measured"], **CLOSE)


def test_a_divided_state_that_is_saved_and_restored_gives_what_copies_give(results):
    np.testing.assert_allclose(results["8s<8s"]["measured"], results["8"]["measured"], **CLOSE)


def test_each_device_holds_an_eighth_of_each_large_array_also_when_it_is_restored(results):
    shards = results["8s<8s"]["shards"]
    kernels = {path: kept for path, kept in shards.items() if "['conv']['kernel']" in path}
    assert len(kernels) == 4  # with its average and Adam's two moments
    assert list(kernels.values()) == [[[3, 3, 3, 512], 8, 1 / 8]] * 4
    others = [kept for path, kept in shards.items() if path not in kernels]
    assert {(count, share) for _, count, share in others} == {(8, 1.0)}


def test_without_the_option_each_device_holds_all(results):
    assert {kept[2] for kept in results["8"]["shards"].values()} == {1.0}


def test_nothing_is_divided_over_one_device_and_a_run_says_so():
    code = (
        "import train.config as c, train.devices as d; d.find_devices(c.Config(shard_params=True))"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "shard_params=True does nothing: there is only one device" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_on_fewer(tmp_path):
    ends = [
        f"{now}<{before}" for before in ("8", "8s") for now in ("1", "2", "2s", "4", "4s", "8s")
    ]
    results = train_on(tmp_path, "8", *ends)
    for run in ends:
        np.testing.assert_allclose(
            results[run]["measured"], results["8"]["measured"], **CLOSE, err_msg=run
        )


def measured(folder):
    """All that was measured in the epochs of a run, and of the test images."""
    lines = (folder / "transferred" / "metrics.jsonl").read_text().splitlines()
    (result,) = json.loads((folder / "results.json").read_text())
    records = [*map(json.loads, lines), result["test"]]
    return [value for record in records for _, value in sorted(record.items())]


@pytest.mark.slow
def test_two_hosts_with_a_divided_state_stop_and_go_on_as_one(tmp_path):
    interrupted.make_inputs(tmp_path)
    command = interrupted.arguments(tmp_path, tmp_path, "--no-baseline", "--learning-rate", "1e-4")
    command += ["--target-args", "width=512"]
    divided = [*command, "--shard-params", "--name", "hosts", "--save-every-steps", "1"]

    def finish(*processes):
        ends = [interrupted.finish(process) for process in processes]
        assert [status for status, _, _ in ends] == [0] * len(ends), ends

    finish(interrupted.start([*command, "--name", "one"]))
    hosts = interrupted.start_hosts(divided, divided)
    saved = tmp_path / "hosts" / "checkpoints" / "transferred"
    interrupted.wait_for(hosts[0], lambda: list(saved.glob("[0-9]")))
    hosts[1].send_signal(signal.SIGTERM)
    finish(*hosts)
    assert not (tmp_path / "hosts" / "results.json").exists()
    shutil.copytree(tmp_path / "hosts", tmp_path / "alone")
    finish(*interrupted.start_hosts(*[[*divided, "--resume"]] * 2))
    finish(interrupted.start([*command, "--name", "alone", "--resume"]))
    for name in ("hosts", "alone"):
        np.testing.assert_allclose(measured(tmp_path / name), measured(tmp_path / "one"), **CLOSE)
