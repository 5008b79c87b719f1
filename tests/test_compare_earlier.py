"""Comparisons that an earlier version began: what it wrote is read by name, and never shifted."""

import csv
import dataclasses
import io
import json

import pytest
import small_inputs
from rich.console import Console

from train.compare import Settings, compare
from train.compare.folder import open_folder
from train.compare.resolve import resolve
from train.compare.rows import METRICS, append_rows, columns_of, forget_unfinished, read_rows
from train.compare.training import failed_rows
from train.compare.trainings import Training
from train.config import RecipeOptions
from train.datasets import load_dataset
from train.errors import ConfigError
from train.machine import MACHINE

# As the version before recipes wrote them.
OLD_SETTINGS = (
    *("source", "target", "target_args", "dataset", "source_weights", "source_prefix", "data_dir"),
    *("on_bad_image", "image_size", "normalization", "epochs", "batch_size", "weight_decay"),
    *("crossover_rate", "best_by", "seed", "precision"),
)
OLD_COLUMNS = (
    *("start", "learning_rate", "seed", "epoch", *METRICS, "seconds", "date", "machine", "python"),
    *("jax", "flax", "optax", "numpy", "tlv-jax", "vmap"),
    *(f"settings.{name}" for name in OLD_SETTINGS),
    *("note", "status"),
)
OLD_ROW = {
    **dict.fromkeys(OLD_COLUMNS, ""),
    **{"start": "he", "learning_rate": "0.01", "seed": "0", "epoch": "1", "seconds": "38.9"},
    **dict.fromkeys(METRICS, "0.5"),
    **{"date": "2026-11-27", "machine": "AMD EPYC, 2 cores", "python": "3.11.7"},
    **{"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "numpy": "2.4.6", "tlv-jax": "0.1.0"},
    **{"vmap": "1", "settings.batch_size": "8", "note": "", "status": "done"},
}


def write_old_rows(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, OLD_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow(OLD_ROW)
        file.write("he,0.01,1,1,0.6233")  # killed in the middle of a line


def cells_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    photographs = small_inputs.save_photographs(folder / "photographs")
    weights = small_inputs.save_source(folder / "squeezenet.safetensors")
    return Settings(
        **small_inputs.settings_of(photographs, weights),
        epochs=1,
        batch_size=8,
        methods=("he",),
        seeds=2,
        learning_rates=(1e-2,),
        out=folder,
        name="comparison",
    )


@pytest.fixture(scope="module")
def begun(settings):
    """The folder of a comparison, as the earlier version left it after the first training."""
    folder = open_folder(resolve(settings), load_dataset(settings))
    path = folder / "settings.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({name: now[name] for name in OLD_SETTINGS}))
    write_old_rows(folder / "rows.csv")
    return folder


def test_a_comparison_of_an_earlier_version_is_continued(begun, settings):
    output = io.StringIO()
    result = compare(settings, console=Console(file=output, width=120))
    assert "1 of 2 trainings to run" in output.getvalue()
    old, new = cells_of(begun / "rows.csv")
    assert old == dict.fromkeys(new, "") | OLD_ROW
    assert (new["start"], new["seed"], new["status"]) == ("he", "1", "done")
    assert (new["settings.best_by"], new["settings.recipe"]) == ("balanced_accuracy", "published")
    assert result.rows[0].metrics == dict.fromkeys(METRICS, 0.5)
    assert result.missing == 0


def test_it_is_not_continued_with_what_it_did_not_have(begun, settings):
    modern = dataclasses.replace(settings, recipe=RecipeOptions("modern", warmup_epochs=0.0))
    with pytest.raises(ConfigError, match="was started with recipe='published'"):
        compare(modern, console=Console(quiet=True))


def test_rows_with_more_columns_are_appended_under_their_names(tmp_path):
    path = tmp_path / "rows.csv"
    write_old_rows(path)
    failed = failed_rows([Training("distill", 1e-3, 4)], RuntimeError("out of memory"))
    append_rows(path, failed, {"machine": "other", "grain": "1.0"})
    old, new = cells_of(path)
    assert old == {**OLD_ROW, "grain": ""}
    assert (new["start"], new["machine"], new["grain"]) == ("distill", "other", "1.0")
    assert (new["settings.batch_size"], new["status"]) == ("", "failed")
    assert list(new)[-2:] == ["note", "status"]
    forget_unfinished(path)
    assert cells_of(path) == [old]
    assert [row.training for row in read_rows(tmp_path)] == [Training("he", 1e-2, 0)]


def test_a_column_that_was_not_written_is_unknown(tmp_path):
    write_old_rows(tmp_path / "rows.csv")
    (machine,) = columns_of(tmp_path, (*MACHINE, "grain"))
    assert (machine["python"], machine["grain"]) == ("3.11.7", "unknown")
