"""Comparisons by other recipes than the published one, with several seeds in one program."""

import dataclasses
import io
import shlex

import pytest
import small_inputs
import tyro
from rich.console import Console

import tlv_jax
import train
from train.compare import Settings, compare
from train.compare.resolve import resolve
from train.config import DistillOptions, RecipeOptions
from train.errors import ConfigError

RECIPE = RecipeOptions(
    "modern",
    optimizer="sgd",
    nesterov=True,
    warmup_epochs=0.7,
    clip_norm=1.0,
    decay_all=False,
    accumulate=2,
    ema=0.9,
    freeze=("^conv/",),
    rates=("dense=2",),
    mixup=0.2,
    cutmix=1.0,
    crossover_schedule="linear",
    crossover_mask="batch",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    photographs = small_inputs.save_photographs(folder / "photographs", contrast=30)
    weights = small_inputs.save_source(folder / "squeezenet.safetensors")
    return Settings(
        **small_inputs.settings_of(photographs, weights),
        epochs=1,
        batch_size=8,
        methods=("default+crossover",),
        seeds=2,
        learning_rates=(0.05,),
        vmap=2,
        recipe=RECIPE,
        out=folder,
    )


def run(settings, **changes):
    output = io.StringIO()
    changed = dataclasses.replace(settings, **changes)
    return compare(changed, console=Console(file=output, width=120)), output.getvalue()


def record_of_a_run(settings, **changes):
    """What a single run with the settings of a comparison measures after its only epoch."""
    own = {field.name for field in dataclasses.fields(train.Config)} - {"method"}
    shared = {name: getattr(settings, name) for name in own}
    shared |= {"learning_rate": 0.05, "baseline": False, **changes}
    with pytest.warns(tlv_jax.SimilarityWarning):
        result = train.run(train.Config(**shared), console=Console(quiet=True))
    (record,) = result.runs[0].epochs
    return record


@pytest.fixture(scope="module")
def finished(settings):
    return run(settings, name="finished")


@pytest.mark.slow
def test_a_comparison_trains_by_a_recipe_as_a_run_does(finished, settings):
    comparison, _ = finished
    record, row = record_of_a_run(settings, name="run"), comparison.rows[0]
    assert row.training == ("default+crossover", 0.05, 0)
    for metric in ("train_loss", "validation_loss"):
        # Sums are taken in another order: a run is split over the devices.
        assert row.metrics[metric] == pytest.approx(record[metric], rel=1e-3)
    assert comparison.rows[1].metrics["train_loss"] != row.metrics["train_loss"]


def test_the_report_names_the_recipe(finished):
    comparison, output = finished
    assert "frozen: conv/bias, conv/kernel\n" in output
    report = (comparison.folder / "report.md").read_text()
    for words in (
        *("--recipe modern --recipe.optimizer sgd --recipe.nesterov True", "--recipe.ema 0.9 "),
        *("--recipe.decay-all False", "--recipe.freeze '^conv/' --recipe.rates dense=2"),
        "by the modern recipe (optimizer=sgd, nesterov=True, warmup_epochs=0.7,",
    ):
        assert words in report


def test_the_command_of_the_report_asks_for_the_same_comparison(finished):
    comparison, _ = finished
    report = (comparison.folder / "report.md").read_text()
    (line,) = [line for line in report.splitlines() if line.startswith("python -m train.compare")]
    assert resolve(tyro.cli(Settings, args=shlex.split(line)[3:])) == comparison.settings


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["projection", "learned"])
def test_lent_features_are_adapted_in_a_comparison_as_in_a_run(settings, adapter):
    recipe = dataclasses.replace(RECIPE, crossover_adapter=adapter)
    comparison, output = run(settings, name=f"with {adapter}", recipe=recipe)
    assert f"crossover adapter: {adapter}, of 512 features to 8" in output
    record = record_of_a_run(settings, name=f"{adapter} run", recipe=recipe)
    for metric in ("train_loss", "validation_loss"):
        assert comparison.rows[0].metrics[metric] == pytest.approx(record[metric], rel=1e-3)


@pytest.mark.slow
def test_a_source_teaches_in_a_comparison_as_in_a_run(settings):
    distill = DistillOptions(weight=2.0, temperature=3.0)
    methods = ("he", "distill", "default+crossover+distill")
    comparison, _ = run(settings, name="taught", methods=methods, distill=distill)
    first = {row.training.start: row.metrics for row in comparison.rows if not row.training.seed}
    assert len({metrics["train_loss"] for metrics in first.values()}) == 3
    logits = dataclasses.replace(distill, name="logits")
    record = record_of_a_run(settings, name="taught run", distill=logits)
    for metric in ("train_loss", "validation_loss"):
        found = first["default+crossover+distill"][metric]
        assert found == pytest.approx(record[metric], rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (RecipeOptions(momentum=0.5), "does nothing for recipe.optimizer=adamw"),
        (RecipeOptions("modern"), "expected fewer than epochs=1"),
        (RecipeOptions(freeze=("cnov",)), "'cnov' is found in the path of no parameter"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_there_is_a_folder(settings, recipe, message):
    with pytest.raises(ConfigError, match=message):
        run(settings, name="wrong", recipe=recipe)
    assert not (settings.out / "wrong").exists()
