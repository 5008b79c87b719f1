import dataclasses
import functools
import io
import json
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_inputs
from rich.console import Console
from safetensors.numpy import save_file

import importers
import tlv_jax
import train
from tlv_jax import TransferPlan, methods, models, rules
from train import training
from train.__main__ import main
from train.config import MatchOptions, MethodOptions, RuleOptions
from train.errors import ConfigError, DataError, DivergedError
from train.networks import features_only, size_lent_at

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return small_inputs.save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small_inputs.save_source(
        tmp_path_factory.mktemp("checkpoint") / "squeezenet.safetensors"
    )


@pytest.fixture(scope="module")
def config(photographs, checkpoint, tmp_path_factory):
    return train.Config(
        **small_inputs.settings_of(photographs, checkpoint),
        epochs=2,
        batch_size=8,
        learning_rate=1e-3,
        out=tmp_path_factory.mktemp("runs"),
    )


def run(config):
    output = io.StringIO()
    with warnings.catch_warnings():
        # The small network is like no pretrained one.
        warnings.simplefilter("ignore", tlv_jax.SimilarityWarning)
        result = train.run(config, console=Console(file=output, width=120))
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
        "config.json", "data.json", "plan.json", "plan.txt", "report.json", "report.txt",
        "results.json", "curves.png", "checkpoints", "lock", "transferred", "he", "machines.json",
        "normalization.json", "weights.json",
    }  # fmt: skip
    for run in ("transferred", "he"):
        lines = (result.folder / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        (events,) = (result.folder / run).glob("events.out.tfevents.*")
        assert events.read_bytes().count(b"validation_loss") == 2
    assert TransferPlan.from_json((result.folder / "plan.json").read_text()) == result.plan
    assert (result.folder / "plan.txt").read_text().strip() in output


def test_the_images_of_every_class_are_told_and_kept(finished):
    result, output = finished
    words = [line.replace("│", " ").split() for line in output.splitlines()]
    assert ["light", "14", "3", "3"] in words
    kept = json.loads((result.folder / "data.json").read_text())
    assert kept["counts"]["test"] == {"dark": 3, "light": 3}
    assert len(kept["files"]) == 40


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


def test_the_default_method_carries_weights_into_every_conv(finished):
    result, _ = finished
    assert [target for _, target in result.plan.pairs] == ["params/conv"]
    assert result.plan.rule == methods.DEFAULT.rule
    assert [row.share > 0 for row in result.report.rows if row.source] == [True]


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
    write = training.write_epochs

    def killed(folder, epochs, writer):
        write(folder, epochs, writer)
        if folder.name == "he" and len(epochs) == 2:
            raise KeyboardInterrupt  # after the second epoch, before its checkpoint

    monkeypatch.setattr(training, "write_epochs", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(training, "write_epochs", write)
    resumed, output = run(dataclasses.replace(config, resume=True))
    assert "he, epoch 1 of 2" not in output
    assert "he, epoch 2 of 2" in output
    for one, other in zip(expected.runs, resumed.runs, strict=True):
        assert (one.test, one.epochs) == (other.test, other.epochs)
        chex.assert_trees_all_equal(best_params(expected, one.name), best_params(resumed, one.name))


def test_the_twin_and_the_support_can_be_left_out(config):
    options = MethodOptions(
        "tlvfc", match=MatchOptions("score"), rule=RuleOptions(keep="max", shuffle=False)
    )
    alone = dataclasses.replace(
        config, baseline=False, crossover_rate=0.0, epochs=1, name="alone", method=options
    )
    result, _ = run(alone)
    assert [run.name for run in result.runs] == ["transferred"]
    assert result.plan.rule == rules.Variance(keep="max", shuffle=False)


def test_running_statistics_are_carried_over_with_their_norms(config):
    still = dataclasses.replace(
        config,
        source="efficientnet_lite0",
        source_weights=None,
        epochs=1,
        batch_size=16,  # one step
        crossover_rate=0.0,
        learning_rate=0.0,
        name="norms",
        method=MethodOptions(kinds=("norm",)),
    )
    result, _ = run(still)
    after, twin = (
        best_params(result, name)["model_state"]["batch_stats"] for name in ("transferred", "he")
    )
    (path, _), *_ = result.plan.pairs
    block, norm = path.split("/")[1:]
    given = importers.load("efficientnet_lite0").batch_stats[block][norm]
    # Both networks have the same convolution, and see one batch.
    kept = (after["norm"]["mean"] - twin["norm"]["mean"]) / 0.9
    assert np.abs(kept).max() > 0.1
    assert all(np.isclose(given["mean"], value, atol=1e-5).any() for value in kept)


def test_a_source_without_classifier_is_chosen_by_its_prefix(config, checkpoint, tmp_path):
    whole = importers.read_state_dict(checkpoint)
    body = {f"model.{k}": array for k, array in whole.items() if k.startswith("features.")}
    average = {f"ema.{k}": -array for k, array in body.items()}
    save_file({**body, **average}, tmp_path / "two.safetensors")
    two = dataclasses.replace(
        config, source_weights=tmp_path / "two.safetensors", epochs=1, name="two", baseline=False
    )
    with pytest.raises(importers.StateDictError, match=r"'ema\.model', 'model'.*--source-prefix"):
        run(two)
    with pytest.warns(importers.FreshHeadWarning, match=r"classifier\.1\.weight are re-init"):
        result, _ = run(dataclasses.replace(two, source_prefix="ema"))
    assert [run.name for run in result.runs] == ["transferred"]


def test_networks_that_are_unlike_are_warned_of(config):
    unlike = dataclasses.replace(
        config, epochs=1, crossover_rate=0.0, baseline=False, name="unlike", learning_rate=0.0
    )
    with pytest.warns(tlv_jax.SimilarityWarning, match="The two networks are unlike"):
        train.run(unlike, console=Console(quiet=True))


@pytest.mark.filterwarnings("default::tlv_jax.SimilarityWarning")
def test_a_command_trains_and_prints_warnings_as_sentences(config, tmp_path, capsys):
    paths = {"source-weights": config.source_weights, "data-dir": config.data_dir, "out": tmp_path}
    arguments = [
        *("--source", "squeezenet1_1", "--target", "small_network:Net", "--dataset", "folder"),
        *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
        *("--image-size", "32", "--epochs", "1", "--batch-size", "16", "--crossover-rate", "0"),
        *("--learning-rate", "0", "--no-baseline", "--method", "dpiat", "--method.kinds", "conv"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "small_network:Net on folder, test images" in printed.out
    (warning,) = printed.err.splitlines()
    assert warning.startswith("warning: The two networks are unlike: similarity 0.")


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
    method = MethodOptions("tlvfc", rule=RuleOptions(shuffle=False))
    changed = dataclasses.replace(config, name="other", resume=True, seed=5, method=method)
    match = r"with seed=0, method='default', method\.rule\.shuffle=None\. Resume"
    with pytest.raises(ConfigError, match=match):
        run(changed)


def test_other_images_cannot_resume_a_run(finished, config, photographs):
    result, _ = finished
    (photographs / "bird").mkdir()
    shutil.copy(photographs / "light" / "0.png", photographs / "bird")
    changed = dataclasses.replace(config, name=result.folder.name, resume=True)
    try:
        with pytest.raises(ConfigError, match=r"classes added: 1 \(bird\); files added: 1 "):
            run(changed)
    finally:
        shutil.rmtree(photographs / "bird")


def test_a_training_that_diverges_stops_and_says_so(config):
    wild = dataclasses.replace(config, learning_rate=1e30, name="wild", baseline=False)
    with pytest.raises(DivergedError, match=r"'transferred' became nan in step 3\. .*=1e\+30"):
        run(wild)
    assert not (config.out / "wild" / "transferred" / "metrics.jsonl").exists()


def test_a_squeezenet_is_lent_no_features(config):
    target = dataclasses.replace(config, target="squeezenet1_1")
    with pytest.raises(ConfigError, match="no features can be lent to it"):
        run(target)


def test_a_vgg_lends_the_features_that_are_pooled_globally(key):
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    for name, width in (("vgg11", 512), ("squeezenet1_1", 512)):
        model = features_only(models.create(name))
        variables = jax.eval_shape(model.init, key, images)
        features = functools.partial(model.apply, method="features")
        assert jax.eval_shape(features, variables, images).shape == (2, width)


def test_a_source_that_takes_one_size_is_resized_only_to_lend_features(config):
    source = dataclasses.replace(config, source="vit_b_32")
    assert size_lent_at(source) == config.image_size
    assert size_lent_at(dataclasses.replace(source, crossover_rate=0)) is None
    assert size_lent_at(config) is None


HOST = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from pathlib import Path
import train
photographs, weights, out, port, rank = sys.argv[1:]
hosts = train.HostOptions(join=True, coordinator=f"127.0.0.1:{port}", count=2, rank=int(rank))
result = train.run(train.Config(
    source="squeezenet1_1", source_weights=Path(weights), target="small_network:Net",
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
    paths = (config.data_dir, config.source_weights, tmp_path, port)
    command = [sys.executable, "-c", HOST, *map(str, paths)]
    hosts = [
        subprocess.Popen([*command, str(rank)], cwd=TESTS, stdout=subprocess.PIPE, text=True)
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
