"""Statistics of a comparison: means over seeds, their intervals, and differences in pairs."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from train.compare.rows import Row
from train.compare.trainings import Training
from train.metrics import Summary

__all__ = ["BASELINE", "Estimate", "Line", "after_epochs", "estimate", "make_table", "paired_test"]

BASELINE = "he"
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: NaN without values.
      margin: half the width of its 95% interval by Student's t; NaN for fewer than two values.
      count: number of values.
    """

    mean: float
    margin: float
    count: int


@dataclasses.dataclass(frozen=True)
class Line:
    """One start in the table.

    Attributes:
      start: its name.
      learning_rate: the one with most trainings that ended well, and among these with the best mean
        on the validation images; None for classifiers such as `probe`.
      rates: for each learning rate the mean over seeds of the best validation metric.
      test: by metric, of the test images after each training's best epoch on validation.
      difference: of the metric that chose the epoch, on the test images, to `he` with the same
        seeds; None for `he` itself and where there is no `he`.
      p_value: of that difference, by a paired t-test; NaN where it cannot be tested.
      after: mean of that metric on the test images, by epoch.
      curve: of that metric on the validation images, by epoch.
      lost: trainings with that learning rate that diverged or failed.
    """

    start: str
    learning_rate: float | None
    rates: Mapping[float | None, Estimate]
    test: Mapping[str, Estimate]
    difference: Estimate | None
    p_value: float
    after: Mapping[int, float]
    curve: Mapping[int, Estimate]
    lost: int

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference leaves out zero."""
        if self.difference is None:
            return ""
        if not abs(self.difference.mean) > self.difference.margin:
            return "no difference shown"
        return "better" if self.difference.mean > 0 else "worse"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of some values, with its 95% interval by Student's t."""
    count = len(values)
    if count < 2:
        return Estimate(values[0] if values else math.nan, math.nan, count)
    error = np.std(values, ddof=1) / math.sqrt(count)
    margin = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    return Estimate(float(np.mean(values)), float(margin), count)


def paired_test(values: Sequence[float], others: Sequence[float]) -> float:
    """The p-value of a paired t-test; NaN for fewer than two pairs, or if all differ equally."""
    differences = np.subtract(values, others)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan
    return float(scipy.stats.ttest_rel(values, others).pvalue)


def after_epochs(epochs: int) -> tuple[int, ...]:
    """The epochs of the table: the first, those at a quarter and a half, and the last."""
    return tuple(sorted({1, max(1, round(epochs / 4)), max(1, round(epochs / 2)), epochs}))


def make_table(
    rows: Sequence[Row], methods: Sequence[str], *, epochs: int, best_by: str
) -> tuple[Line, ...]:
    """Makes one line for each start that has a training that is finished.

    Args:
      rows: of trainings that are finished or failed.
      methods: the starts, in the order of the table.
      epochs: of a training.
      best_by: the metric by which epochs and learning rates are chosen.
    """
    trainings: dict[Training, list[Row]] = defaultdict(list)
    for row in rows:
        trainings[row.training].append(row)
    chosen = {
        start: _choose(start, trainings, f"validation_{best_by}")
        for start in methods
        if any(training.start == start for training in trainings)
    }
    baseline = chosen.get(BASELINE)
    return tuple(_line(start, chosen[start], baseline, epochs, best_by) for start in chosen)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The trainings of one start with its learning rate, by seed."""

    learning_rate: float | None
    rates: Mapping[float | None, Estimate]
    runs: Mapping[int, Sequence[Row]]
    best: Mapping[int, Row]
    lost: int


def _choose(start: str, trainings: Mapping[Training, Sequence[Row]], metric: str) -> _Chosen:
    """Chooses the learning rate, and the best epoch of each training, on validation."""
    own = {training: rows for training, rows in trainings.items() if training.start == start}
    well = {training: rows for training, rows in own.items() if rows[-1].status == "done"}
    best = {
        training: max(rows, key=lambda row: row.metrics[metric]) for training, rows in well.items()
    }
    rates = {
        rate: estimate(
            [row.metrics[metric] for row in best.values() if row.training.learning_rate == rate]
        )
        for rate in dict.fromkeys(training.learning_rate for training in own)
    }
    rate = max(rates, key=lambda rate: (rates[rate].count, rates[rate].mean))
    of_rate = [training for training in own if training.learning_rate == rate]
    return _Chosen(
        learning_rate=rate,
        rates=rates,
        runs={one.seed: well[one] for one in of_rate if one in well},
        best={one.seed: best[one] for one in of_rate if one in well},
        lost=sum(one not in well for one in of_rate),
    )


def _line(start: str, chosen: _Chosen, baseline: _Chosen | None, epochs: int, best_by: str) -> Line:
    metric = f"test_{best_by}"
    difference, p_value = None, math.nan
    if baseline is not None and start != BASELINE:
        seeds = sorted(chosen.best.keys() & baseline.best.keys())
        own = [chosen.best[seed].metrics[metric] for seed in seeds]
        other = [baseline.best[seed].metrics[metric] for seed in seeds]
        difference = estimate([a - b for a, b in zip(own, other, strict=True)])
        p_value = paired_test(own, other)
    return Line(
        start=start,
        learning_rate=chosen.learning_rate,
        rates=chosen.rates,
        test={
            name: estimate([row.metrics[f"test_{name}"] for row in chosen.best.values()])
            for name in Summary._fields
        },
        difference=difference,
        p_value=p_value,
        after={
            epoch: each.mean
            for epoch, each in _by_epoch(chosen, metric).items()
            if epoch in after_epochs(epochs)
        },
        curve=_by_epoch(chosen, f"validation_{best_by}"),
        lost=chosen.lost,
    )


def _by_epoch(chosen: _Chosen, metric: str) -> dict[int, Estimate]:
    values: dict[int, list[float]] = defaultdict(list)
    for rows in chosen.runs.values():
        for row in rows:
            values[row.epoch].append(row.metrics[metric])
    return {epoch: estimate(each) for epoch, each in values.items()}
