"""The page of comparisons is what its rows say."""

import shlex
import shutil

import numpy as np
import pytest
import scipy.stats
import tyro

from benchmarks import study
from train.compare import Settings
from train.compare.rows import METRICS, Row, append_rows, columns_of
from train.compare.trainings import Training
from train.errors import DataError
from train.machine import provenance
from train.run_folder import flat_settings

CURVES = {  # by start and seed: on the validation and test images after each epoch
    ("he", 0): ([0.5, 0.6, 0.7, 0.7], [0.50, 0.60, 0.70, 0.90]),
    ("he", 1): ([0.5, 0.6, 0.7, 0.7], [0.50, 0.60, 0.74, 0.90]),
    ("fit_trial", 0): ([0.6, 0.8, 0.7, 0.7], [0.60, 0.80, 0.70, 0.70]),
    ("fit_trial", 1): ([0.6, 0.8, 0.7, 0.7], [0.60, 0.86, 0.70, 0.70]),
    ("distill", 0): ([0.5, 0.5, 0.5, 0.6], [0.50, 0.50, 0.50, 0.60]),
    ("distill", 1): ([0.5, 0.5, 0.5, 0.6], [0.50, 0.50, 0.50, 0.60]),
    ("tlvfc", 0): ([0.5, 0.5, 0.5, 0.6], [0.50, 0.50, 0.50, 0.99]),
    ("tlvfc", 1): ([0.5, 0.5], [0.50, 0.99]),  # was interrupted
}
PLACES = """By hand.

<!-- table: legend -->
old
<!-- end -->

Between.

<!-- table: small -->
<!-- end -->

Behind.
"""


def save_rows(path, curves, start=None, **changes):
    """Writes rows of four epochs as a comparison does; `start` takes the place of `fit_trial`."""
    settings = flat_settings(Settings(dataset="fashion_mnist", epochs=4, image_size=32))
    settings |= {"data_dir": "/somewhere/fashion", "recipe.freeze": ["^a b$"], **changes}
    columns = {**provenance(), "vmap": 2, **{f"settings.{k}": v for k, v in settings.items()}}
    for (name, seed), parts in curves.items():
        rate = None if name == "probe" else 1e-3
        training = Training(start if start and name == "fit_trial" else name, rate, seed)
        for epoch, (held_out, score) in enumerate(zip(*parts, strict=True), 1):
            metrics = dict.fromkeys(METRICS, 0.25) | {
                "validation_balanced_accuracy": held_out,
                "test_balanced_accuracy": score,
            }
            number = 0 if name == "probe" else epoch
            status = "done" if number in (0, 4) else "training"
            append_rows(path, [Row(training, number, metrics, 1.0, status)], columns)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PLACES)
    return path


@pytest.fixture
def written(tmp_path, page):
    """The page of one small comparison."""
    probe = {("probe", seed): ([0.65], [0.75]) for seed in (0, 1)}
    save_rows(tmp_path / "small.csv", CURVES | probe)
    study.main(tmp_path, page)
    return page.read_text()


def test_the_page_in_the_repository_is_what_its_rows_say(tmp_path):
    page = tmp_path / "study.md"
    shutil.copy(study.PAGE, page)
    study.main(page=page)
    assert page.read_text() == study.PAGE.read_text(), "run python -m benchmarks.study"


def test_the_page_differs_if_a_row_does(written, tmp_path, page):
    rows = (tmp_path / "small.csv").read_text()
    assert rows.count(",0.74,") == 1
    (tmp_path / "small.csv").write_text(rows.replace(",0.74,", ",0.75,"))
    study.main(tmp_path, page)
    assert page.read_text() != written


def test_text_by_hand_stays_and_writing_again_changes_nothing(written, tmp_path, page):
    for words in ("By hand.\n\n<!--", "-->\n\nBetween.\n\n<!--", "-->\n\nBehind.\n"):
        assert words in written
    assert "old" not in written
    study.main(tmp_path, page)
    assert page.read_text() == written


def test_starts_are_ranked_by_their_test_score_and_compared_in_pairs(written):
    expected = scipy.stats.ttest_rel([0.80, 0.86], [0.70, 0.74])
    low, high = expected.confidence_interval(0.95)
    difference = f"{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f} | {expected.pvalue:.2g}"
    margin = scipy.stats.t.ppf(0.975, 1) * np.std([0.80, 0.86], ddof=1) / np.sqrt(2)
    lines = written.splitlines()
    header = lines.index(
        "| start | learning rate | balanced accuracy | minus he | p | epochs to he | seeds |"
    )
    fit, probe, he, distill = lines[header + 2 : header + 6]
    assert fit == f"| fit_trial | 0.001 | 0.830 ± {margin:.3f} | {difference} | 2 | 2 |"
    assert probe.startswith("| probe | - | 0.750 | +0.030 ± ")
    assert probe.endswith(" | - | 2 |")
    assert he.startswith("| he | 0.001 | 0.720 ± ")
    assert he.endswith(" | - | - | 3 | 2 |")
    assert distill.endswith(" | - | 2 |")
    assert lines[header + 6] == ""


def test_progress_is_shown_at_fixed_epochs_and_the_last(written):
    assert "| start | epoch 1 | epoch 3 | epoch 4 |" in written
    assert "| he | 0.500 | 0.720 | 0.900 |" in written
    assert "| probe | - | - " not in written


def test_a_start_that_is_not_complete_is_left_out_and_named(written):
    assert "Left out, as not complete: `tlvfc` (1 of 2 trainings have ended)." in written
    assert "| tlvfc |" not in written
    assert "8 trainings on " in written


def test_the_command_asks_for_what_the_rows_are_of(written, tmp_path):
    command = written.partition("python -m train.compare ")[2].partition("```")[0]
    assert all(len(line) < 100 for line in command.splitlines())
    words = shlex.split(command.replace("\\\n", " "))
    settings = tyro.cli(Settings, args=words)
    assert settings.methods == ("he", "distill", "tlvfc", "probe")
    assert "Trials, which the command does not have: `fit_trial`." in written
    assert (settings.seeds, settings.learning_rates, settings.vmap) == (2, (1e-3,), 2)
    assert (settings.dataset, settings.epochs, settings.recipe.freeze) == (
        "fashion_mnist",
        4,
        ("^a b$",),
    )
    assert str(settings.data_dir) == "FOLDER"


def test_trials_alone_have_no_command(tmp_path, page):
    trials = {(name, seed): parts for (name, seed), parts in CURVES.items() if name == "fit_trial"}
    save_rows(tmp_path / "small.csv", trials)
    study.main(tmp_path, page)
    assert "python -m train.compare" not in page.read_text()
    assert "Trials, which no command has: `fit_trial`." in page.read_text()


def test_classifiers_alone_have_neither_rates_nor_progress(tmp_path, page):
    save_rows(tmp_path / "small.csv", {("probe", 0): ([0.65], [0.75])})
    study.main(tmp_path, page)
    assert "| probe | - | 0.750 | - | - | - | 1 |" in page.read_text()
    assert "--learning-rates" not in page.read_text()
    assert "epoch 1" not in page.read_text()


def test_machines_and_days_are_named(written, tmp_path):
    (columns,) = columns_of(tmp_path, ["machine", "date", "jax"], "small.csv")
    assert f"on {columns['machine']}; python 3." in written
    assert f"jax {columns['jax']}" in written
    assert f"; {columns['date']}.\n" in written


def test_the_legend_says_what_each_start_is(tmp_path, page):
    save_rows(tmp_path / "small.csv", CURVES, start="random_source+crossover")
    study.main(tmp_path, page)
    legend = page.read_text().partition("Between.")[0]
    assert "| `random_source` | as `default`, but from a source with random weights |" in legend
    assert "| `+crossover` | as before the plus; the source lends features" in legend
    assert "`finetune`" not in legend


@pytest.mark.parametrize("start", ["bset", "he+fit"])
def test_a_start_without_a_legend_is_refused(tmp_path, page, start):
    save_rows(tmp_path / "small.csv", CURVES, start=start)
    with pytest.raises(DataError, match=rf"no legend for .*{start[-3:]}, expected one for each"):
        study.main(tmp_path, page)
    assert page.read_text() == PLACES


def test_a_comparison_without_a_place_is_refused(tmp_path, page):
    for name in ("small", "other"):
        save_rows(tmp_path / f"{name}.csv", CURVES)
    with pytest.raises(DataError, match="places for legend, small, expected one for each of other"):
        study.main(tmp_path, page)
    (tmp_path / "small.csv").unlink()
    with pytest.raises(DataError, match="remove those without a file"):
        study.main(tmp_path, page)


def test_a_file_of_two_comparisons_is_refused(tmp_path, page):
    save_rows(tmp_path / "small.csv", CURVES)
    save_rows(tmp_path / "small.csv", CURVES, batch_size=64)
    with pytest.raises(
        DataError, match="rows with batch_size=128 and with batch_size=64, expected"
    ):
        study.main(tmp_path, page)


def test_a_file_without_a_complete_training_is_refused(tmp_path, page):
    save_rows(tmp_path / "small.csv", {("tlvfc", 1): CURVES["tlvfc", 1]})
    with pytest.raises(DataError, match="has 2 rows, of no training that has ended"):
        study.main(tmp_path, page)
