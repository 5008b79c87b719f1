"""The rows of a comparison: one for each epoch of each training, in CSV files."""

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from train.compare.settings import Settings
from train.compare.trainings import Training
from train.data import PARTS
from train.metrics import Summary

__all__ = [
    "METRICS",
    "Row",
    "append_rows",
    "columns_of",
    "file_of",
    "finished",
    "forget_unfinished",
    "read_rows",
]

Status = Literal["training", "done", "diverged", "failed"]
METRICS = tuple(f"{part}_{metric}" for part in PARTS for metric in Summary._fields)
"""Of each epoch: `train_loss`, `validation_accuracy`, `test_balanced_accuracy` and so on."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One epoch of one training.

    Attributes:
      training: which one.
      epoch: from 1; 0 for a classifier, which has none, and where it failed.
      metrics: by the names in `METRICS`; NaN where it failed.
      seconds: since the start of the training, with those that ran in the same program.
      status: `training` before the last epoch, and `done` after it; `diverged` if a loss is not
        finite; `failed` if the device could not run it.
      note: why it failed.
    """

    training: Training
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    status: Status
    note: str = ""


def file_of(settings: Settings) -> Path:
    """The file that this part writes; every part has its own."""
    number, count = settings.slice
    name = "rows.csv" if count == 1 else f"rows-{number}-of-{count}.csv"
    return settings.folder / name


def read_rows(folder: Path) -> tuple[Row, ...]:
    """All rows of all parts. A training that two files hold is read from the first."""
    rows: dict[Training, list[Row]] = {}
    for path in sorted(folder.glob("rows*.csv")):
        found = _read(path)
        complete = finished(found)
        for training in {row.training: None for row in found}:
            if training not in rows or (training in complete and not finished(rows[training])):
                rows[training] = [row for row in found if row.training == training]
    return tuple(row for group in rows.values() for row in group)


def finished(rows: Iterable[Row]) -> frozenset[Training]:
    """The trainings that need not be run again. What failed is run again."""
    return frozenset(row.training for row in rows if row.status in ("done", "diverged"))


def append_rows(path: Path, rows: Sequence[Row], constants: Mapping[str, Any]) -> None:
    """Appends rows to a file, under the names of its columns.

    A file of an earlier version, which has fewer columns, gets the new ones first; they are empty
    in its rows.

    Args:
      path: of the file, which may not be there yet.
      rows: to append.
      constants: further columns, the same for all rows: machine, versions, settings.
    """
    columns, old = _columns(constants), _header(path)
    if not set(columns) <= set(old):
        kept = [*columns[:-2], *(name for name in old if name not in columns), *columns[-2:]]
        _rewrite(path, kept, [cells for cells in _lines(path) if _row(cells)] if old else [])
        old = kept
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, old, lineterminator="\n")
        writer.writerows(_cells(row) | dict(constants) for row in rows)


def forget_unfinished(path: Path) -> None:
    """Takes the rows out of a file whose trainings were interrupted or failed."""
    if not path.exists():
        return
    complete = finished(_read(path))
    kept = [cells for cells in _lines(path) if (row := _row(cells)) and row.training in complete]
    _rewrite(path, _header(path), kept)


def columns_of(folder: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The different values that some further columns have together, over all parts.

    A column that a row of an earlier version does not have is `unknown`.
    """
    found: dict[tuple[str, ...], None] = {}
    for path in sorted(folder.glob("rows*.csv")):
        found |= {
            tuple(cells.get(name) or "unknown" for name in names): None
            for cells in _lines(path)
            if _row(cells)
        }
    return [dict(zip(names, values, strict=True)) for values in found]


def _read(path: Path) -> list[Row]:
    return [row for cells in _lines(path) if (row := _row(cells))]


def _lines(path: Path) -> list[dict[str, str]]:
    """The lines of a file, by the names of its columns; also one that was cut off."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _header(path: Path) -> Sequence[str]:
    """The names of the columns of a file; none if it is not there or empty."""
    if not path.exists():
        return ()
    with path.open(newline="") as file:
        return csv.DictReader(file).fieldnames or ()


def _rewrite(path: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file anew, all at once; what a line does not have is empty."""
    draft = path.with_suffix(".draft")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(draft, path)


def _columns(constants: Mapping[str, Any]) -> tuple[str, ...]:
    # The status is last: a line that was cut off when the process was killed has none.
    return (*Training._fields, "epoch", *METRICS, "seconds", *constants, "note", "status")


def _cells(row: Row) -> dict[str, Any]:
    return {
        **row.training._asdict(),
        "epoch": row.epoch,
        **row.metrics,
        "seconds": f"{row.seconds:.1f}",
        "note": row.note,
        "status": row.status,
    }


def _row(cells: Mapping[str, Any]) -> Row | None:
    """A row of a file; None for a line that was cut off."""
    if cells["status"] not in get_args(Status):
        return None
    rate = cells["learning_rate"]
    return Row(
        training=Training(cells["start"], float(rate) if rate else None, int(cells["seed"])),
        epoch=int(cells["epoch"]),
        metrics={name: float(cells[name]) for name in METRICS},
        seconds=float(cells["seconds"]),
        status=cells["status"],
        note=cells["note"],
    )
