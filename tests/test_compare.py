"""Whole comparisons of a small network: rows, resumption, parts, and what is refused."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_inputs
from rich.console import Console

import tlv_jax
import train
from train.compare import Settings, compare, comparison
from train.compare.__main__ import main
from train.compare.rows import METRICS
from train.compare.settings import CLASSIFIERS
from train.compare.starts import start_of
from train.config import DistillOptions, RecipeOptions
from train.data import PARTS
from train.datasets import load_dataset
from train.errors import ConfigError
from train.metrics import summarize, tally
from train.probe import fit_probe

ROOT = Path(__file__).parent.parent
STARTS = (
    "he",
    "default",
    "default+crossover",
    "random_matching",
    "random_source",
    "probe",
    "pixels",
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    return small_inputs.save_photographs(folder, contrast=30)


@pytest.fixture(scope="module")
def settings(photographs, tmp_path_factory):
    path = small_inputs.save_source(
        tmp_path_factory.mktemp("checkpoint") / "squeezenet.safetensors"
    )
    return Settings(
        **small_inputs.settings_of(photographs, path),
        epochs=2,
        batch_size=8,
        methods=STARTS,
        seeds=2,
        learning_rates=(1e-4, 1e-2),
        vmap=3,  # trainings with both learning rates
        out=tmp_path_factory.mktemp("runs"),
    )


def run(settings, **changes):
    output = io.StringIO()
    changed = dataclasses.replace(settings, **changes)
    return compare(changed, console=Console(file=output, width=120)), output.getvalue()


def contents(folder):
    return {path.name: path.read_text() for path in folder.glob("rows*.csv")}


@pytest.fixture(scope="module")
def made():
    """The starts that the comparison below makes, each with its seed."""
    return []


@pytest.fixture(scope="module")
def finished(settings, made):
    def recorded(study, name, seed):
        made.append((name, seed))
        return start_of(study, name, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "start_of", recorded)
        return run(settings, name="finished")


def test_a_start_is_made_once_for_all_learning_rates(finished, made):
    assert sorted(made) == sorted(
        (start, seed) for start in STARTS if start not in CLASSIFIERS for seed in (0, 1)
    )


def test_every_epoch_of_every_training_is_a_row(finished, settings):
    comparison, _ = finished
    with (comparison.folder / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["start"] not in CLASSIFIERS]
    found = [(r["start"], float(r["learning_rate"]), r["seed"], r["epoch"]) for r in trained]
    expected = {
        (start, rate, seed, epoch)
        for start in STARTS[:-2]
        for rate in settings.learning_rates
        for seed in "01"
        for epoch in "12"
    }
    assert set(found) == expected
    assert len(found) == len(expected)
    fitted = [(row["start"], row["seed"], row["learning_rate"]) for row in rows[-4:]]
    assert fitted == [(start, seed, "") for start in CLASSIFIERS for seed in "01"]
    for row in rows:
        assert all(np.isfinite(float(row[metric])) for metric in METRICS)
        assert row["settings.target"] == "small_network:Net"
        assert row["jax"]
        assert row["machine"]
    assert comparison.missing == 0
    assert len(comparison.rows) == len(rows)


def test_starts_differ_and_the_same_seed_sees_the_same_images(finished):
    comparison, _ = finished
    first = {
        row.training.start: row.metrics["train_loss"]
        for row in comparison.rows
        if row.training[1:] == (1e-4, 1) and row.epoch == 1
    }
    assert set(first) == set(STARTS[:-2])
    assert len(set(first.values())) == len(first)


def test_pixels_are_classified_as_the_same_fit_by_hand_does(settings):
    result, output = run(
        settings, methods=("pixels",), train_images=16, best_by="accuracy", name="pixels"
    )
    splits = load_dataset(result.settings)
    means = {
        part: getattr(splits, part).images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)) / 255
        for part in PARTS
    }
    known, unseen, tested = (means[part].reshape(len(means[part]), -1) for part in PARTS)
    assert known.shape == (16, 768)
    expected = fit_probe(known, unseen, splits, "accuracy")
    counted = summarize(tally(expected.linear.logits(tested), splits.test.labels))
    first, second = result.rows
    assert first.metrics == second.metrics
    assert (first.training, first.status) == (("pixels", None, 0), "done")
    assert first.metrics["validation_accuracy"] == pytest.approx(expected.score)
    assert first.metrics["test_loss"] == pytest.approx(counted.loss, rel=1e-3)
    assert "| pixels | - |" in output
    report = (result.folder / "report.md").read_text()
    assert "--train-images 16" in report
    assert "| all | 16 | 6 | 6 |" in report
    assert "curves.png" in report


def test_a_comparison_trains_as_a_run_does(finished, settings):
    comparison, _ = finished
    own = {field.name for field in dataclasses.fields(train.Config)}
    shared = {name: getattr(settings, name) for name in own if name != "method"}
    config = train.Config(**shared | {"learning_rate": 1e-2, "name": "run"})
    with pytest.warns(tlv_jax.SimilarityWarning):
        result = train.run(config, console=Console(quiet=True))
    for training in result.runs:
        start = {"transferred": "default+crossover", "he": "he"}[training.name]
        rows = [row for row in comparison.rows if row.training == (start, 1e-2, 0)]
        for row, record in zip(rows, training.epochs, strict=True):
            for metric in ("train_loss", "validation_loss"):
                # Sums are taken in another order: a run is split over the devices.
                assert row.metrics[metric] == pytest.approx(record[metric], rel=1e-2)


def test_the_report_names_what_was_compared(finished):
    comparison, output = finished
    report = (comparison.folder / "report.md").read_text()
    for words in (
        *("python -m train.compare --source squeezenet1_1", "--learning-rates 0.0001 0.01"),
        *("| dark | 14 | 3 | 3 |", "| all | 28 | 6 | 6 |", "; python 3.", "jax 0."),
        *("| start | epoch 1 | epoch 2 |", "![balanced accuracy"),
    ):
        assert words in report
    assert str(comparison) in report
    assert str(comparison) in output
    assert "Not complete" not in report
    assert (comparison.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(finished, settings):
    comparison, _ = finished
    before = contents(comparison.folder)
    again, output = run(settings, name="finished")
    assert contents(comparison.folder) == before
    assert again == comparison
    assert "trainings to run" not in output


def test_an_interrupted_comparison_continues_to_the_same_rows(finished, settings):
    comparison, _ = finished
    text = (comparison.folder / "rows.csv").read_text()
    other = comparison.folder.with_name("interrupted")
    other.mkdir()
    for name in ("settings.json", "data.json"):
        (other / name).write_text((comparison.folder / name).read_text())
    lines = text.splitlines(keepends=True)
    # Killed in the second epoch of the first group of random_source, the fifth start.
    (other / "rows.csv").write_text("".join(lines[:36]) + lines[36][:40])
    again, output = run(settings, name="interrupted")
    assert "8 of 24 trainings to run" in output
    assert (other / "rows.csv").read_text().startswith("".join(lines[:33]))
    for row, expected in zip(again.rows, comparison.rows, strict=True):
        assert row.training == expected.training
        assert row.metrics == pytest.approx(expected.metrics)


def test_parts_together_are_the_whole(finished, settings):
    whole, _ = finished
    small = {"methods": ("he", "default", "probe"), "learning_rates": (1e-2,), "name": "parts"}
    for number in (2, 1, 3):
        part, output = run(settings, part=f"{number}/3", **small)
    assert set(contents(part.folder)) == {f"rows-{n}-of-3.csv" for n in (1, 2, 3)}
    assert "1 of 3" not in output
    assert part.missing == 0
    expected = {(row.training, row.epoch): row.metrics for row in whole.rows}
    assert len(part.rows) == 2 * 2 * 2 + 2
    for row in part.rows:
        metrics = expected[row.training, row.epoch]
        for metric in ("train_loss", "validation_loss"):
            # Sums are taken in another order: the whole has both learning rates in one program.
            assert row.metrics[metric] == pytest.approx(metrics[metric], rel=1e-2)


def test_a_comparison_that_is_made_larger_trains_only_what_is_new(settings):
    small = {"methods": ("he",), "learning_rates": (1e-2,), "name": "larger"}
    first, _ = run(settings, seeds=1, **small)
    before = contents(first.folder)["rows.csv"]
    second, output = run(settings, seeds=2, **small)
    assert "1 of 2 trainings to run" in output
    assert contents(second.folder)["rows.csv"].startswith(before)
    assert len(second.rows) == 4


def test_a_part_says_what_is_missing(settings):
    part, output = run(settings, part="1/2", name="half", methods=("he",), learning_rates=(1e-2,))
    assert part.missing == 1
    assert "1 trainings are missing" in output
    assert "**Not complete: 1 trainings are missing.**" in (part.folder / "report.md").read_text()


def test_a_training_that_diverges_is_a_row_and_stops_no_other(settings):
    result, output = run(
        settings, name="wild", methods=("he",), learning_rates=(1e30, 1e-2), seeds=1
    )
    wild, *others = result.rows
    assert (wild.status, wild.epoch) == ("diverged", 1)
    assert [row.status for row in others] == ["training", "done"]
    assert result.table[0].learning_rate == 1e-2
    assert result.missing == 0
    assert "seed 0 at 1e+30 diverged" in output
    assert "1e+30, seed 0, epoch 1: diverged" in (result.folder / "report.md").read_text()


def test_a_start_that_cannot_be_made_is_left_out(settings):
    result, output = run(
        settings, name="left out", methods=("finetune", "he"), learning_rates=(1e-2,), seeds=1
    )
    assert "no published weights of target='small_network:Net'" in result.left_out["finetune"]
    assert "finetune is left out" in output
    assert [line.start for line in result.table] == ["he"]
    assert "`finetune` is left out" in (result.folder / "report.md").read_text()


def test_a_module_of_nnx_is_compared(settings):
    result, _ = run(
        settings,
        name="nnx",
        target="test_target:OfNNX",
        methods=("he", "default+crossover"),
        learning_rates=(1e-2,),
        normalization="dataset",
    )
    losses = [row.metrics["train_loss"] for row in result.rows if row.epoch == 1]
    assert len(set(losses)) == 4
    assert [row.status for row in result.rows if row.epoch == 2] == ["done"] * 4


def test_other_settings_and_other_folders_are_refused(finished, settings):
    with pytest.raises(ConfigError, match=r"started with batch_size=8\. Continue it with the same"):
        run(settings, name="finished", batch_size=4)
    (settings.out / "photos").mkdir()
    with pytest.raises(ConfigError, match=r"photos is there and is no comparison"):
        run(settings, name="photos")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("he", "tlvcf")}, "expected some of he, default, bare, tlvfc"),
        ({"methods": ("probe+crossover",)}, "all but probe and pixels also"),
        ({"methods": ("pixels+distill",)}, "all but probe and pixels also"),
        ({"methods": ("he", "he")}, "one is there twice"),
        ({"learning_rates": (0.0,)}, "expected numbers above 0"),
        ({"part": "4/3"}, "expected K/N"),
        ({"seeds": 0}, "seeds=0, expected at least 1"),
        ({"resume": True}, "a comparison has no such setting"),
        ({"target_weights": Path("weights.pth")}, "a comparison has no such setting"),
        ({"source": ("vgg11", "vgg13")}, "expected one source, as a comparison has no mixtures"),
        ({"methods": ("he+crossover",), "crossover_rate": 0.0}, "expected a probability above 0"),
        ({"methods": ("distill+distill",)}, "distill, .head in this order"),
        ({"distill": DistillOptions("logits")}, "put distill or default.distill among methods"),
        ({"distill": DistillOptions(weight=0.0)}, r"distill\.weight=0\.0, expected a number above"),
        (
            {"methods": ("he", "distill"), "crossover_rate": 0.3},
            r"crossover_rate=0\.3 does nothing for methods=he, distill\. .* \+crossover",
        ),
        (
            {"methods": ("he",), "recipe": RecipeOptions(crossover_adapter="learned")},
            r"recipe\.crossover_adapter=learned does nothing for methods=he\.",
        ),
        (
            {"methods": ("he+crossover",), "distill": DistillOptions(weight=2.0)},
            r"distill\.weight=2\.0 does nothing for methods=he\+crossover\. .* \+distill",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, change, message):
    with pytest.raises(ConfigError, match=message):
        run(settings, **change)


def test_help_does_not_wait_for_jax():
    code = "import sys, train.compare.__main__; print('jax' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run.stdout == "False\n"


def test_a_command_compares(settings, capsys):
    arguments = [
        *("--source", "squeezenet1_1", "--source-weights", str(settings.source_weights)),
        *("--target", "small_network:Net", "--dataset", "folder"),
        *("--data-dir", str(settings.data_dir), "--out", str(settings.out), "--name", "command"),
        *("--image-size", "32", "--epochs", "1", "--batch-size", "8", "--methods", "he"),
        *("--seeds", "1", "--learning-rates", "1e-2"),
    ]
    assert main(arguments) == 0
    assert "| he | 0.01 |" in capsys.readouterr().out
    assert json.loads((settings.out / "command" / "settings.json").read_text())["epochs"] == 1
    assert main([*arguments, "--weight-decay", "0"]) == 1
    assert "error: The comparison in" in capsys.readouterr().err
