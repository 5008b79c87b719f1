"""The tables of a comparison in Markdown."""

import math
from collections.abc import Sequence

from train.compare.table import Estimate, Line, after_epochs

__all__ = ["progress_table", "rates_table", "result_table", "table_of"]

NOTHING = "-"


def result_table(lines: Sequence[Line], best_by: str) -> str:
    """Test metrics of every start, and how much better than `he` it is."""
    columns = (
        *("start", "learning rate", "accuracy", "balanced accuracy", "loss"),
        *(f"{best_by.replace('_', ' ')} minus he", "p", "verdict", "seeds", "lost"),
    )
    return table_of(
        columns,
        [
            (
                line.start,
                NOTHING if line.learning_rate is None else f"{line.learning_rate:g}",
                *(_cell(line.test[name]) for name in ("accuracy", "balanced_accuracy", "loss")),
                NOTHING if line.difference is None else _cell(line.difference, sign=True),
                NOTHING if math.isnan(line.p_value) else f"{line.p_value:.2g}",
                line.verdict or NOTHING,
                str(line.test["loss"].count),
                str(line.lost),
            )
            for line in lines
        ],
    )


def progress_table(lines: Sequence[Line], epochs: int) -> str:
    """The mean on the test images after some epochs; a classifier such as `probe` has none."""
    numbers = after_epochs(epochs)
    return table_of(
        ("start", *(f"epoch {number}" for number in numbers)),
        [
            (
                line.start,
                *(f"{line.after[n]:.3f}" if n in line.after else NOTHING for n in numbers),
            )
            for line in lines
        ],
    )


def rates_table(lines: Sequence[Line]) -> str:
    """The mean of the best validation metric with each learning rate; the chosen one is bold."""
    tuned = [line for line in lines if line.learning_rate is not None]
    rates = sorted({rate for line in tuned for rate in line.rates if rate is not None})
    return table_of(
        ("start", *(f"{rate:g}" for rate in rates)),
        [(line.start, *(_rate_cell(line, rate) for rate in rates)) for line in tuned],
    )


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, its lines ended by a newline."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rate_cell(line: Line, rate: float) -> str:
    if rate not in line.rates or not line.rates[rate].count:
        return NOTHING
    text = f"{line.rates[rate].mean:.3f}"
    return f"**{text}**" if rate == line.learning_rate else text


def _cell(value: Estimate, *, sign: bool = False) -> str:
    """A mean and the half width of its interval."""
    if not value.count:
        return NOTHING
    mean = f"{value.mean:+.3f}" if sign else f"{value.mean:.3f}"
    return mean if math.isnan(value.margin) else f"{mean} ± {value.margin:.3f}"
