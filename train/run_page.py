"""A run as one HTML page, and where pages are written to."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlv_jax.pages.elements import facts, page, picture, section, table
from tlv_jax.pages.transfers import transfer_sections
from train import curves
from train.contents import read_counts
from train.errors import ConfigError
from train.machine import read_machines
from train.results import (
    EPOCH_COLUMNS,
    RESULT_COLUMNS,
    epoch_cells,
    read_metrics,
    read_normalization,
    read_results,
    read_transfer,
    result_cells,
    state_of,
)
from train.run_folder import given_settings, read_settings

__all__ = ["check_page", "run_page", "write_page", "write_run_page"]


def run_page(folder: Path) -> str:
    """Returns what is known of a run as HTML, whether it is going on or finished.

    The page has results, learning curves, the transfer, images, settings and machines. Without
    matplotlib it has no pictures and says so.

    Raises:
      ConfigError: if the folder holds no run, or a file of it is damaged.
    """
    settings = given_settings(read_settings(folder))
    sources, target = settings.get("source"), settings.get("target")
    names = sources if isinstance(sources, list) else [sources]
    state = {"run": str(folder), "state": state_of(folder)}
    sections = [section("Run", facts(state)), *_trainings(folder)]
    if made := read_transfer(folder):
        sections += transfer_sections(*made)
    sections += [_images(folder), section("Settings", facts(_texts(settings)))]
    if machines := read_machines(folder):
        sections.append(section("Machines", *(facts(_texts(entry)) for entry in machines)))
    return page(f"{', '.join(map(str, names))} into {target}", sections)


def _trainings(folder: Path) -> list[str]:
    sections = []
    if results := read_results(folder):
        rows = [result_cells(run) for run in results]
        sections.append(section("Test images", table(RESULT_COLUMNS, rows)))
    if epochs := {name: records for name, records in read_metrics(folder).items() if records}:
        drawn = picture(lambda: curves.draw_curves(epochs), "Learning curves")
        sections.append(section("Epochs", drawn, _epochs(epochs)))
    return sections


def _epochs(epochs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = [(name, *epoch_cells(record)) for name, records in epochs.items() for record in records]
    return table(("training", *EPOCH_COLUMNS), rows)


def _images(folder: Path) -> str:
    counts = read_counts(folder)
    classes = list(dict.fromkeys(name for part in counts.values() for name in part))
    rows = [(name, *(str(part.get(name, 0)) for part in counts.values())) for name in classes]
    normalization = read_normalization(folder)
    given = normalization._asdict() if normalization else {}
    how = facts({f"normalized by {name}": str(numbers) for name, numbers in given.items()})
    return section("Images", how, table(("class", *counts), rows))


def _texts(entries: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in entries.items()}


def write_run_page(folder: Path, html: Path) -> None:
    """Writes the page of a run.

    Raises:
      ConfigError: as `run_page`, or if the file cannot be written.
    """
    check_page(html)
    write_page(html, run_page(folder))


def check_page(html: Path | None) -> None:
    """Checks that a page can be written to this file, before anything is computed.

    Raises:
      ConfigError: if it is a folder, or lies in one that is missing.
    """
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        found = "is a folder" if html.is_dir() else f"lies in {html.parent}, which is no folder"
        raise ConfigError(f"html={str(html)!r} {found}. Name a file in a folder that is there.")


def write_page(html: Path, text: str) -> None:
    """Writes a page, once `check_page` has passed its file, and says so on standard error.

    Raises:
      ConfigError: if the file cannot be written.
    """
    try:
        html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"html={str(html)!r} cannot be written ({error}). Name another file."
        ) from error
    without = "" if curves.available() else ", without pictures: matplotlib is not installed"
    print(f"{html}: a page to open in a browser{without}", file=sys.stderr)
