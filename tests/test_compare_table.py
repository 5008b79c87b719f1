"""The statistics of a comparison against NumPy and SciPy by hand, and the files of its rows."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from train.compare.markdown import progress_table, rates_table, result_table
from train.compare.rows import METRICS, Row, append_rows, finished, forget_unfinished, read_rows
from train.compare.settings import REPLACED, Settings
from train.compare.table import after_epochs, estimate, make_table, paired_test
from train.compare.training import failed_rows
from train.compare.trainings import Training, all_trainings, groups, part_of
from train.config import Config

CURVES = {  # by start, learning rate and seed: on the validation and test images after each epoch
    ("he", 1e-3, 0): ([0.5, 0.6, 0.55], [0.50, 0.61, 0.90]),
    ("he", 1e-3, 1): ([0.5, 0.5, 0.70], [0.52, 0.55, 0.66]),
    ("he", 1e-3, 2): ([0.4, 0.6, 0.65], [0.41, 0.58, 0.64]),
    ("he", 1e-2, 0): ([0.5, 0.5, 0.50], [0.99, 0.99, 0.99]),
    ("he", 1e-2, 1): ([0.5, 0.5, 0.50], [0.99, 0.99, 0.99]),
    ("he", 1e-2, 2): ([0.5, 0.5, 0.50], [0.99, 0.99, 0.99]),
    ("default", 1e-3, 0): ([0.6, 0.6, 0.60], [0.70, 0.70, 0.70]),
    ("default", 1e-3, 1): ([0.6, 0.6, 0.60], [0.70, 0.70, 0.70]),
    ("default", 1e-3, 2): ([0.6, 0.6, 0.60], [0.70, 0.70, 0.70]),
    ("default", 1e-2, 0): ([0.7, 0.8, 0.75], [0.71, 0.79, 0.74]),
    ("default", 1e-2, 1): ([0.7, 0.7, 0.80], [0.72, 0.71, 0.81]),
    ("default", 1e-2, 2): ([0.9, 0.8, 0.80], [0.83, 0.77, 0.78]),
}


def rows_of(curves):
    for name, (validation, test) in curves.items():
        for epoch, (held_out, score) in enumerate(zip(validation, test, strict=True), 1):
            metrics = dict.fromkeys(METRICS, 0.25) | {
                "validation_accuracy": held_out,
                "test_accuracy": score,
            }
            status = "done" if epoch == len(test) else "training"
            yield Row(Training(*name), epoch, metrics, 1.0, status)


@pytest.fixture
def table():
    rows = tuple(rows_of(CURVES))
    return make_table(rows, ("default", "he", "tlvfc"), epochs=3, best_by="accuracy")


def test_a_start_gets_the_rate_and_the_epochs_that_are_best_on_validation(table):
    default, he = table
    assert (default.start, default.learning_rate) == ("default", 1e-2)
    assert (he.start, he.learning_rate) == ("he", 1e-3)  # in spite of 0.99 on the test images
    assert he.test["accuracy"].mean == pytest.approx(np.mean([0.61, 0.66, 0.64]))
    assert default.test["accuracy"].mean == pytest.approx(np.mean([0.79, 0.81, 0.83]))
    assert default.rates[1e-2].mean == pytest.approx(np.mean([0.8, 0.8, 0.9]))


def test_differences_are_taken_in_pairs_of_seeds(table):
    default, he = table
    own, other = np.array([0.79, 0.81, 0.83]), np.array([0.61, 0.66, 0.64])
    expected = scipy.stats.ttest_rel(own, other)
    low, high = expected.confidence_interval(0.95)
    assert default.difference.mean == pytest.approx((low + high) / 2)
    assert default.difference.margin == pytest.approx((high - low) / 2)
    assert default.p_value == pytest.approx(expected.pvalue)
    assert default.verdict == "better"
    assert (he.difference, he.verdict) == (None, "")


def test_only_seeds_that_both_starts_have_are_compared():
    curves = {name: curve for name, curve in CURVES.items() if name != ("he", 1e-3, 1)}
    curves = {name: curve for name, curve in curves.items() if name[:2] != ("he", 1e-2)}
    rows = tuple(rows_of(curves))
    default, _ = make_table(rows, ("default", "he"), epochs=3, best_by="accuracy")
    assert default.difference.count == 2
    assert default.difference.mean == pytest.approx(np.mean([0.79 - 0.61, 0.83 - 0.64]))


def test_an_interval_is_students():
    values = [0.7, 0.74, 0.71, 0.78]
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate(values)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))
    assert (estimate([0.7]).mean, estimate([0.7]).count) == (0.7, 1)
    assert math.isnan(estimate([0.7]).margin)
    assert math.isnan(estimate([]).mean)


@pytest.mark.parametrize(("own", "other"), [([0.5], [0.4]), ([0.5, 0.75], [0.25, 0.5])])
def test_what_cannot_be_tested_has_no_p_value(own, other):
    assert math.isnan(paired_test(own, other))


def test_progress_is_shown_at_quarters_of_the_budget(table):
    assert after_epochs(200) == (1, 50, 100, 200)
    assert after_epochs(4) == (1, 2, 4)
    assert after_epochs(1) == (1,)
    default, _ = table
    assert default.after == pytest.approx({1: 2.26 / 3, 2: 2.27 / 3, 3: 2.33 / 3})
    assert "| default | 0.753 | 0.757 | 0.777 |" in progress_table(table, 3)


def test_tables_are_markdown(table):
    lines = result_table(table, "accuracy").splitlines()
    assert lines[0].startswith("| start | learning rate | accuracy | balanced accuracy | loss |")
    assert lines[2].startswith("| default | 0.01 | 0.810 ± 0.050 | 0.250 ± 0.000 | 0.250 ± 0.000 |")
    assert "+0.173 ± 0.052 | 0.0048 | better | 3 | 0 |" in lines[2]
    assert "| he | **0.650** | 0.500 |" in rates_table(table)


def test_a_rate_that_loses_a_training_gives_way_to_one_that_loses_none():
    rows = list(rows_of(CURVES))
    lost = Training("default", 1e-2, 1)
    rows = [row for row in rows if row.training != lost]
    rows += [Row(lost, 1, dict.fromkeys(METRICS, math.nan), 1.0, "diverged", "a loss")]
    default, _ = make_table(rows, ("default", "he"), epochs=3, best_by="accuracy")
    assert (default.learning_rate, default.lost) == (1e-3, 0)
    only = [row for row in rows if row.training[:2] != ("default", 1e-3)]
    default, _ = make_table(only, ("default", "he"), epochs=3, best_by="accuracy")
    assert (default.learning_rate, default.lost) == (1e-2, 1)
    assert default.test["accuracy"].count == 2


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = tuple(rows_of(CURVES))
    append_rows(tmp_path / "rows-1-of-2.csv", rows[:9], {"machine": "a, b"})
    append_rows(tmp_path / "rows-2-of-2.csv", rows[9:12], {"machine": "c"})
    append_rows(tmp_path / "rows-2-of-2.csv", rows[12:], {"machine": "c"})
    assert read_rows(tmp_path) == rows
    assert finished(rows) == {Training(*name) for name in CURVES}


def test_what_failed_is_trained_again_and_what_is_complete_counts(tmp_path):
    (training,) = {row.training for row in list(rows_of(CURVES))[:1]}
    failed = failed_rows([training], RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore"))
    append_rows(tmp_path / "rows-1-of-2.csv", failed, {})
    assert finished(read_rows(tmp_path)) == frozenset()
    (row,) = read_rows(tmp_path)
    assert (row.status, row.note.split(".")[0]) == ("failed", "RESOURCE_EXHAUSTED: out of memory")
    good = tuple(rows_of({tuple(training): CURVES[tuple(training)]}))
    append_rows(tmp_path / "rows-2-of-2.csv", good, {})
    assert read_rows(tmp_path) == good
    forget_unfinished(tmp_path / "rows-1-of-2.csv")
    (tmp_path / "rows-2-of-2.csv").unlink()
    assert read_rows(tmp_path) == ()


def test_every_setting_of_a_run_is_obeyed_or_refused():
    """A new one has to be put into effect in `train.compare.study`, or into `REPLACED`."""
    obeyed = {
        *("source", "target", "target_args", "dataset", "source_weights", "source_prefix"),
        *("data_dir", "on_bad_image", "image_size", "normalization", "epochs", "batch_size"),
        *("weight_decay", "crossover_rate", "best_by", "seed", "precision", "out", "name"),
        *("recipe", "distill", "train_images"),
    }
    assert {field.name for field in dataclasses.fields(Config)} == obeyed | set(REPLACED)


def test_parts_are_disjoint_and_all_and_keep_starts_together():
    settings = Settings(methods=("he", "probe", "default"), seeds=3, learning_rates=(1e-3, 1e-2))
    trainings = all_trainings(settings)
    assert len(set(trainings)) == len(trainings) == 3 * 2 * 2 + 3
    parts = [part_of(trainings, number, 4) for number in (1, 2, 3, 4)]
    assert [one for part in parts for one in part] == list(trainings)
    assert {len(part) for part in parts} == {3, 4}
    done = {Training("he", 1e-3, 1)}
    found = list(groups(trainings, done, 2))
    first = [[(one.learning_rate, one.seed) for one in group] for group in found[:3]]
    assert first == [[(1e-3, 0), (1e-3, 2)], [(1e-2, 0), (1e-2, 1)], [(1e-2, 2)]]
    five = next(groups(trainings, done, 5))
    assert [one[1:] for one in five] == [(1e-3, 0), (1e-3, 2), (1e-2, 0), (1e-2, 1), (1e-2, 2)]
    assert [len(group) for group in found if group[0].start == "probe"] == [3]
    assert all(len({one.start for one in group}) == 1 for group in found)
