"""Run a comparison: train what is missing, and make the table of all that is there."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from tlv_jax.errors import TLVError
from train import curves
from train.compare.folder import kept_settings, open_folder
from train.compare.picture import save_bands
from train.compare.report import report_text
from train.compare.resolve import check_used, resolve
from train.compare.result import Comparison
from train.compare.rows import (
    Row,
    append_rows,
    columns_of,
    file_of,
    finished,
    forget_unfinished,
    read_rows,
)
from train.compare.settings import Settings
from train.compare.starts import Start, start_of
from train.compare.study import Study, prepare
from train.compare.table import make_table
from train.compare.training import failed_rows, run_group
from train.compare.trainings import Training, all_trainings, groups, part_of
from train.data import Splits
from train.datasets import load_dataset
from train.errors import name_some
from train.machine import MACHINE, provenance

__all__ = ["Comparison", "compare"]


def compare(settings: Settings, *, console: Console | None = None) -> Comparison:
    """Trains the target from several starts and compares them.

    What the folder holds already is not trained again. Every start is trained with every learning
    rate and every seed, on the same images for as many epochs. The start of a seed is that of
    `train.run` with that seed, and so are its batches and its augmentation.

    Args:
      settings: what is compared, and under which budget.
      console: where to print; standard output if None.

    Raises:
      TLVError: for a wrong setting, weights or images that cannot be had, or a folder that was
        started with other settings or images.
    """
    settings = resolve(settings)
    console = console or Console()
    new = not settings.folder.exists()
    if new:
        check_used(settings)
    splits = load_dataset(settings)
    # What cannot be trained is refused before there is a folder.
    study = prepare(settings, splits, console) if new else None
    folder = open_folder(settings, splits)
    left_out = _train_missing(settings, splits, study, console)
    comparison = _found(settings, left_out)
    _write_report(comparison, splits)
    console.print(str(comparison), highlight=False, soft_wrap=True)
    if comparison.missing:
        console.print(f"{comparison.missing} trainings are missing", highlight=False)
    console.print(f"report: {folder / 'report.md'}", highlight=False, soft_wrap=True)
    return comparison


def _found(settings: Settings, left_out: Mapping[str, str]) -> Comparison:
    """What the folder holds of what the settings ask for."""
    wanted = dict.fromkeys(all_trainings(settings))
    rows = [row for row in read_rows(settings.folder) if row.training in wanted]
    done = finished(rows)
    ended = done | {row.training for row in rows if row.status == "failed"}
    rows = tuple(row for row in rows if row.training in ended)
    return Comparison(
        folder=settings.folder,
        settings=settings,
        rows=rows,
        table=make_table(rows, settings.methods, best_by=settings.best_by),
        left_out=left_out,
        missing=sum(one not in done and one.start not in left_out for one in wanted),
    )


def _train_missing(
    settings: Settings, splits: Splits, study: Study | None, console: Console
) -> dict[str, str]:
    """Trains what this part is missing; returns the starts that cannot be made, and why."""
    trainings = part_of(all_trainings(settings), *settings.slice)
    done = finished(read_rows(settings.folder))
    missing = list(groups(trainings, done, settings.vmap))
    if not missing:
        return {}
    console.print(
        f"{sum(map(len, missing))} of {len(trainings)} trainings to run in {settings.folder}",
        highlight=False,
        soft_wrap=True,
    )
    path = file_of(settings)
    forget_unfinished(path)
    study = study or prepare(settings, splits, console)
    if study.frozen:
        console.print(f"frozen: {name_some(study.frozen)}", highlight=False, soft_wrap=True)
    kept = {f"settings.{name}": value for name, value in kept_settings(settings).items()}
    columns = {**provenance(), "vmap": settings.vmap, **kept}
    left_out: dict[str, str] = {}
    for name, alike in itertools.groupby(missing, key=lambda group: group[0].start):
        # One for each seed, the same for all learning rates: a fit takes as long as some epochs.
        begin = functools.cache(functools.partial(start_of, study, name))
        try:
            for group in alike:
                rows = _train_group(study, group, begin, path, columns)
                _print_group(console, name, rows, settings.best_by)
        except TLVError as error:
            left_out[name] = str(error)
            console.print(f"{name} is left out: {error}", highlight=False, soft_wrap=True)
    return left_out


def _train_group(
    study: Study,
    group: Sequence[Training],
    begin: Callable[[int], Start],
    path: Path,
    columns: Mapping[str, Any],
) -> list[Row]:
    """Trains a group and appends its rows; returns the last of each training."""
    last: dict[Training, Row] = {}
    try:
        for rows in run_group(study, group, begin):
            append_rows(path, rows, columns)
            last |= {row.training: row for row in rows}
    except jax.errors.JaxRuntimeError as error:
        rows = failed_rows(group, error)
        append_rows(path, rows, columns)
        last = {row.training: row for row in rows}
    return list(last.values())


def _print_group(console: Console, start: str, rows: list[Row], best_by: str) -> None:
    """One line for a group that has ended, with the last row of each training."""
    console.print(
        f"{start}: {best_by.replace('_', ' ')} on validation: "
        f"{', '.join(_outcome(row, best_by) for row in rows)}, {rows[-1].seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


def _outcome(row: Row, best_by: str) -> str:
    """Which training this was, and how it ended."""
    rate = row.training.learning_rate
    name = f"seed {row.training.seed}" + ("" if rate is None else f" at {rate:g}")
    if row.status != "done":
        return f"{name} {row.status} ({row.note})"
    return f"{name} {row.metrics[f'validation_{best_by}']:.3f}"


def _write_report(comparison: Comparison, splits: Splits) -> None:
    """Writes `report.md` and, where matplotlib is installed, `curves.png`."""
    folder, picture = comparison.folder, None
    if curves.available() and comparison.table:
        picture = "curves.png"
        metric = comparison.settings.best_by.replace("_", " ")
        save_bands(comparison.table, f"{metric}, validation images", folder / picture)
    text = report_text(comparison, splits, columns_of(folder, MACHINE), picture)
    (folder / "report.md").write_text(text)
