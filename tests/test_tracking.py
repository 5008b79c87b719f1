"""Weights & Biases: what is recorded, and that it never ends a training. Always offline."""

import dataclasses
import json
import struct
import sys

import interrupted
import pytest
import wandb
from rich.console import Console
from wandb.proto import wandb_internal_pb2

import train
from train.config import MethodOptions
from train.errors import ConfigError
from train.metrics import Summary
from train.results import RunResult
from train.show import main as show
from train.tracking import Tracker, open_tracker

RESULT = RunResult("he", Summary(0.5, 0.25, 0.75), 1, 2.0, ())


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Where Weights & Biases writes."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path / "wandb"
    wandb.teardown()  # it reads its environment once, and then writes what is left


def recorded(records):
    """The settings, epochs and summary of all runs that are recorded."""
    wandb.teardown()
    settings, epochs, summary = {}, [], {}
    for path in sorted(records.glob("offline-run-*/run-*.wandb")):
        for record in _records(path.read_bytes()):
            settings |= _values(record.run.config.update)
            summary |= _values(record.summary.update)
            epochs += [_values(record.history.item)] if record.history.item else []
    return settings, epochs, summary


def _records(data):
    """Reads the format of LevelDB's log, after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture
def config(tmp_path):
    interrupted.make_inputs(tmp_path)
    return train.Config(
        target="small_network:Net",
        dataset="folder",
        data_dir=tmp_path / "photographs",
        image_size=32,
        epochs=2,
        batch_size=8,
        crossover_rate=0.0,
        method=MethodOptions("none"),
        out=tmp_path / "runs",
        name="tracked",
        wandb=True,
    )


def run(config):
    return train.run(config, console=Console(quiet=True))


@pytest.mark.slow
def test_a_run_and_its_resumption_are_one_there(config, records, capsys):
    result = run(config)
    (trained,) = result.runs
    settings, epochs, summary = recorded(records)
    assert (settings["target"], settings["method"]) == ("small_network:Net", "none")
    assert len(epochs) == 2
    for epoch, expected in zip(epochs, trained.epochs, strict=True):
        assert {name: epoch[f"he/{name}"] for name in expected} == expected
    for name, value in trained.test._asdict().items():
        assert summary[f"he/test_{name}"] == pytest.approx(value)
    run(dataclasses.replace(config, resume=True))
    ids = {path.name.rpartition("-")[2] for path in records.glob("offline-run-*")}
    assert len(ids) == 1
    assert len(recorded(records)[1]) == 2  # what was recorded is not recorded again
    show([str(result.folder)])
    assert f"Weights & Biases: run {ids.pop()}" in capsys.readouterr().out


def test_a_failure_there_is_one_warning(config, records, tmp_path):
    with open_tracker(config, tmp_path) as tracker:
        tracker.epoch("he", {"epoch": 1, "train_loss": 0.5})
        wandb.finish()
        with pytest.warns(UserWarning, match=r"Biases failed \(Run .* the run goes on and is no"):
            tracker.epoch("he", {"epoch": 2, "train_loss": 0.25})
        tracker.result(RESULT)  # which would fail as well
    assert [epoch["he/train_loss"] for epoch in recorded(records)[1]] == [0.5]


def test_a_run_that_cannot_be_started_there_goes_on(config, records, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "no/such:name")
    with (
        pytest.warns(UserWarning, match="Biases failed .*no/such:name.* the run goes on"),
        open_tracker(config, tmp_path) as tracker,
    ):
        tracker.epoch("he", {"epoch": 1})


def test_without_the_option_nothing_is_recorded(config, records, tmp_path):
    with open_tracker(dataclasses.replace(config, wandb=False), tmp_path) as tracker:
        assert isinstance(tracker, Tracker)
        tracker.epoch("he", {"epoch": 1})
    assert not records.exists()
    assert not (tmp_path / "wandb.json").exists()


def test_the_missing_package_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'tlv-jax\[wandb\]'"):
        run(config)
    assert not config.out.exists()
