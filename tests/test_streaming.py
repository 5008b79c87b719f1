"""Pictures that are read when their batch comes: the same run as with all pictures in memory."""

import json
import os
import signal
import socket
import sys
import threading
import time

import chex
import interrupted
import numpy as np
import pytest
import small_inputs
from PIL import Image

from train.__main__ import main
from train.compare.resolve import resolve as resolve_comparison
from train.compare.settings import Settings
from train.config import Config
from train.errors import ConfigError
from train.resolve import resolve

NAMES = ("transferred",)
STREAM = ("--stream",)

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")


def save_pictures(folder):
    """Writes 40 JPEGs of two classes and many sizes, and a file that is cut off."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            shape = (*generator.integers(20, 60, 2), 3)
            pixels = generator.integers(0, 128, shape) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.jpg")
    content = (folder / "dark" / "03.jpg").read_bytes()
    (folder / "dark" / "03.jpg").write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    save_pictures(folder / "pictures")
    small_inputs.save_source(folder / "source.safetensors")
    return folder


def command(inputs, name, *options):
    """Of a run with 3 steps in each of 3 epochs, each in two parts."""
    return [
        *("--source", "squeezenet1_1", "--source-weights", f"{inputs}/source.safetensors"),
        *("--target", "small_network:Net", "--no-baseline", "--crossover-rate", "0"),
        *("--dataset", "folder", "--data-dir", f"{inputs}/pictures", "--image-size", "24"),
        *("--normalization", "dataset", "--recipe.accumulate", "2", "--batch-size", "8"),
        *("--epochs", "3", "--learning-rate", "0.01"),
        *("--out", str(inputs / "runs"), "--name", name, *options),
    ]


@pytest.fixture(scope="module")
def resident(inputs):
    """The folder of a run that has all pictures in memory."""
    assert main(command(inputs, "resident")) == 0
    return inputs / "runs" / "resident"


def assert_same_run(folder, expected):
    assert_same_results(folder, expected)
    arrays = [interrupted.checkpoints_of(each, NAMES) for each in (folder, expected)]
    chex.assert_trees_all_equal(*arrays)


def assert_same_results(folder, expected):
    metrics = [(each / "transferred" / "metrics.jsonl").read_text() for each in (folder, expected)]
    assert metrics[0] == metrics[1]
    assert interrupted.results_of(folder) == interrupted.results_of(expected)
    assert json.loads((folder / "data.json").read_text()) == json.loads(
        (expected / "data.json").read_text()
    )


def test_a_streamed_run_is_bit_equal_to_the_run_in_memory(inputs, resident, capsys):
    assert main(command(inputs, "streamed", *STREAM)) == 0
    assert_same_run(inputs / "runs" / "streamed", resident)
    printed = capsys.readouterr().out
    assert "find those that are damaged: 40" in printed
    assert "unreadable files, skipped: 1 (" in printed
    assert "dark/03.jpg" in printed


@pytest.fixture
def signalled():
    """Sends SIGTERM to this process when a path exists; a late one does nothing."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    ended = threading.Event()

    def send(path):
        while not path.exists() and not ended.is_set():
            time.sleep(0.001)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def when(path):
        threading.Thread(target=send, args=(path,)).start()

    yield when
    ended.set()
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("more", [STREAM, ()], ids=["streamed", "in memory"])
def test_a_streamed_run_that_is_stopped_goes_on_to_the_same_bits(
    inputs, resident, signalled, capsys, more
):
    name = f"stopped-{len(more)}"
    folder = inputs / "runs" / name
    signalled(folder / "checkpoints" / "transferred")
    assert main(command(inputs, name, *STREAM)) == 0
    assert "stopped after step" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
    assert main(command(inputs, name, "--resume", *more)) == 0
    assert_same_run(folder, resident)
    # What could be read at the start is not checked again; the damaged file is.
    assert ("are damaged: 1\n" in capsys.readouterr().out) == bool(more)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_read_the_same_run_and_it_may_go_on_with_others(inputs, resident, devices):
    expected = resident
    if devices == 1:
        process = interrupted.start(command(inputs, "one-device"), devices)
        status, _, errors = interrupted.finish(process)
        assert status == 0, errors
        expected = inputs / "runs" / "one-device"
    name = f"workers-{devices}"
    folder = inputs / "runs" / name
    process = interrupted.start(command(inputs, name, *STREAM, "--workers", "2"), devices)
    interrupted.wait_for(process, (folder / "checkpoints" / "transferred").exists)
    process.send_signal(signal.SIGTERM)
    status, _, errors = interrupted.finish(process)
    assert (status, len(errors.splitlines())) == (0, 2), errors
    assert "stopped after step" in errors
    more = (*STREAM, "--workers", "1", "--resume")
    process = interrupted.start(command(inputs, name, *more), devices)
    status, _, errors = interrupted.finish(process)
    assert status == 0, errors
    assert "leaked" not in errors
    assert "Traceback" not in errors
    assert_same_run(folder, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "cifar10", "stream": True},
            "stream=True for dataset='cifar10'.*intel, folder",
        ),
        ({"dataset": "folder", "workers": 2}, "workers=2 with stream=False"),
        ({"dataset": "folder", "stream": True, "workers": -1}, "workers=-1"),
    ],
)
def test_what_cannot_be_streamed_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve(Config(**settings))


def test_streaming_without_grain_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"needs the package grain.*tlv-jax\[stream\]"):
        resolve(Config(dataset="folder", stream=True))


def test_a_comparison_does_not_stream():
    with pytest.raises(ConfigError, match="stream=True: a comparison has no such setting"):
        resolve_comparison(Settings(dataset="folder", stream=True))


@pytest.mark.slow
def test_two_hosts_stream_the_run_that_they_train_in_memory(inputs):
    for name, more in (("hosts-resident", ()), ("hosts-streamed", STREAM)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        join = ("--hosts.join", "--hosts.coordinator", address, "--hosts.count", "2")
        hosts = [
            interrupted.start(command(inputs, name, *more, *join, "--hosts.rank", rank), devices=1)
            for rank in ("0", "1")
        ]
        ends = [interrupted.finish(host) for host in hosts]
        assert [status for status, _, _ in ends] == [0, 0], ends
    # Their checkpoints cannot be read with the devices that there are here.
    assert_same_results(*(inputs / "runs" / f"hosts-{name}" for name in ("streamed", "resident")))
