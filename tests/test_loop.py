import dataclasses
import functools
import io
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from rich.console import Console

import train
from tlv_jax import TransferPlan, models
from train import loop
from train.config import TransferOptions
from train.errors import ConfigError, DataError, DivergedError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Noise around two colours, which a network can tell apart."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = generator.integers(0, 128, (32, 32, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def config(photographs, tmp_path_factory):
    return train.Config(
        dataset="folder",
        data_dir=photographs,
        image_size=32,
        epochs=2,
        batch_size=8,
        learning_rate=1e-3,
        out=tmp_path_factory.mktemp("runs"),
    )


def run(config):
    output = io.StringIO()
    result = train.fit(config, console=Console(file=output, width=120))
    return result, output.getvalue()


@pytest.fixture(scope="module")
def finished(config):
    return run(config)


def best_params(result, name):
    folder = result.folder / "checkpoints" / name
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    with ocp.CheckpointManager(folder, item_names=("state", "progress")) as manager:
        restored = manager.restore(
            steps[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    return jax.tree.map(np.asarray, restored.state)


def test_the_run_folder_holds_everything_that_was_measured(finished):
    result, output = finished
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "config.json", "plan.json", "plan.txt", "report.json", "report.txt",
        "results.json", "curves.png", "checkpoints", "transferred", "he",
    }  # fmt: skip
    for run in ("transferred", "he"):
        lines = (result.folder / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        (events,) = (result.folder / run).glob("events.out.tfevents.*")
        assert events.read_bytes().count(b"validation_loss") == 2
    assert TransferPlan.from_json((result.folder / "plan.json").read_text()) == result.plan
    assert (result.folder / "plan.txt").read_text().strip() in output


def test_both_trainings_are_reported(finished):
    result, output = finished
    assert [run.name for run in result.runs] == ["transferred", "he"]
    for run in result.runs:
        assert 0 <= run.test.balanced_accuracy <= 1
        assert np.isfinite(run.test.loss)
        assert 1 <= run.best_epoch <= 2
        best = max(record["validation_balanced_accuracy"] for record in run.epochs)
        assert run.epochs[run.best_epoch - 1]["validation_balanced_accuracy"] == best
    assert "balanced accuracy" in output
    assert "transferred, epoch 2 of 2" in output


def test_the_plan_carries_imagenet_weights_into_every_conv(finished):
    result, _ = finished
    assert len(result.plan.pairs) == 20
    assert all(row.share > 0 for row in result.report.rows if row.source)


def test_fixed_settings_give_bit_equal_results(finished, config):
    first, _ = finished
    second, _ = run(config)
    assert second.folder != first.folder
    for one, other in zip(first.runs, second.runs, strict=True):
        assert (one.test, one.epochs, one.best_epoch) == (
            other.test,
            other.epochs,
            other.best_epoch,
        )
        chex.assert_trees_all_equal(best_params(first, one.name), best_params(second, one.name))


def test_a_killed_run_resumes_to_the_same_result(finished, config, monkeypatch):
    expected, _ = finished
    config = dataclasses.replace(config, name="killed")
    write = loop.write_epochs

    def killed(folder, epochs, writer):
        write(folder, epochs, writer)
        if folder.name == "he" and len(epochs) == 2:
            raise KeyboardInterrupt  # after the second epoch, before its checkpoint

    monkeypatch.setattr(loop, "write_epochs", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(loop, "write_epochs", write)
    resumed, output = run(dataclasses.replace(config, resume=True))
    assert "he, epoch 1 of 2" not in output
    assert "he, epoch 2 of 2" in output
    for one, other in zip(expected.runs, resumed.runs, strict=True):
        assert (one.test, one.epochs) == (other.test, other.epochs)
        chex.assert_trees_all_equal(best_params(expected, one.name), best_params(resumed, one.name))


def test_the_twin_and_the_support_can_be_left_out(config):
    options = TransferOptions(keep="max", remove="min", shuffle=False, head="keep", norms=True)
    alone = dataclasses.replace(
        config, baseline=False, crossover_rate=0.0, epochs=1, name="alone", transfer=options
    )
    result, _ = run(alone)
    assert [run.name for run in result.runs] == ["transferred"]
    assert result.plan.drawn == ()
    assert "keep='max'" in str(result.plan.rule)
    assert ("_bn0", "bn1") in result.plan.pairs


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"resume": True, "name": "never started"}, ConfigError, "no run to resume"),
        ({"batch_size": 64}, DataError, "fewer than batch_size=64"),
        ({"batch_size": 7}, ConfigError, "split over 2 devices"),
    ],
)
def test_what_cannot_run_is_refused(config, change, error, message):
    with pytest.raises(error, match=message):
        run(dataclasses.replace(config, **change))


def test_other_settings_cannot_resume_a_run(finished, config):
    result, _ = finished
    folder = result.folder.with_name("other")
    shutil.copytree(result.folder, folder)
    changed = dataclasses.replace(config, name="other", resume=True, seed=5)
    with pytest.raises(ConfigError, match="started with seed=0"):
        run(changed)


def test_a_training_that_diverges_stops_and_says_so(config):
    wild = dataclasses.replace(config, learning_rate=1e30, name="wild", baseline=False)
    with pytest.raises(DivergedError, match=r"'transferred' became nan in step 2\. .*=1e\+30"):
        run(wild)
    assert not (config.out / "wild" / "transferred" / "metrics.jsonl").exists()


def test_a_vgg_lends_the_features_that_are_pooled_globally(key):
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    for name, width in (("vgg11", 512), ("resnet18", 512), ("efficientnet_lite0", 1280)):
        model = loop._features_only(models.create(name))
        variables = jax.eval_shape(model.init, key, images)
        features = functools.partial(model.apply, method="features")
        assert jax.eval_shape(features, variables, images).shape == (2, width)


HOST = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from pathlib import Path
import train
photographs, out, port, rank = sys.argv[1:]
hosts = train.HostOptions(join=True, coordinator=f"127.0.0.1:{port}", count=2, rank=int(rank))
result = train.fit(train.Config(
    dataset="folder", data_dir=Path(photographs), image_size=32, epochs=2, batch_size=8,
    learning_rate=1e-3, out=Path(out), baseline=False, hosts=hosts,
))
print("test", result.folder, result.runs[0].test)
"""


@pytest.mark.slow
def test_two_hosts_give_what_two_devices_give(finished, config, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", HOST, str(config.data_dir), str(tmp_path), str(port)]
    hosts = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    last = [output.splitlines()[-1] for output in outputs]
    assert last[0] == last[1]
    assert "transferred, epoch 2 of 2" in outputs[0]
    assert "transferred, epoch" not in outputs[1]
    (folder,) = tmp_path.iterdir()
    for line, expected in zip(
        (folder / "transferred" / "metrics.jsonl").read_text().splitlines(),
        finished[0].runs[0].epochs,
        strict=True,
    ):
        # Sums are taken in another order, and Adam's first steps go by the signs of gradients.
        assert json.loads(line)["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
