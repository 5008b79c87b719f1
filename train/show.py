"""`python -m train.show RUN`: what is known of a run, whether it is going on or finished."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tlv_jax.errors import TLVError
from train.contents import read_counts, show_counts
from train.machine import read_machines
from train.results import (
    EPOCH_COLUMNS,
    epoch_cells,
    read_metrics,
    read_normalization,
    read_results,
    result_table,
    state_of,
)
from train.run_folder import given_settings, read_settings
from train.run_page import write_run_page
from train.tracking import read_tracked_id

__all__ = ["main", "show"]


def show(folder: Path, console: Console) -> None:
    """Prints the settings, machines, images, epochs so far and results of a run.

    Raises:
      ConfigError: if the folder holds no run, or a file of it is damaged.
    """
    settings = given_settings(read_settings(folder))
    results = read_results(folder)
    _print(console, f"{folder}: {state_of(folder)}")
    console.print(_settings_table(settings))
    if machines := read_machines(folder):
        console.print(_machines_table(machines))
    if normalization := read_normalization(folder):
        _print(console, f"images are normalized by {normalization}")
    if identity := read_tracked_id(folder):
        _print(console, f"Weights & Biases: run {identity}")
    show_counts(read_counts(folder), console)
    for name, epochs in read_metrics(folder).items():
        console.print(_epochs_table(name, epochs))
    if results:
        title = f"{settings.get('target')} on {settings.get('dataset')}, test images"
        console.print(result_table(results, title))


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _machines_table(machines: Sequence[Mapping[str, str]]) -> Table:
    """One column for the start of the run, and one for each machine or version that came later."""
    table = Table(title="machines", show_header=False)
    for name in dict.fromkeys(name for entry in machines for name in entry):
        table.add_row(name, *(Text(entry.get(name, "")) for entry in machines))
    return table


def _settings_table(settings: dict[str, object]) -> Table:
    table = Table(title="settings", show_header=False)
    for name, value in settings.items():
        table.add_row(name, Text(str(value)))
    return table


def _epochs_table(name: str, epochs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=name)
    for column in EPOCH_COLUMNS:
        table.add_column(column, justify="right")
    for record in epochs:
        table.add_row(*epoch_cells(record))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows a run from the command line; returns the exit status."""

    def command(run: Annotated[Path, tyro.conf.Positional], html: Path | None = None) -> None:
        """Show the settings, machines, images, epochs and results of a run.

        Args:
          run: The run folder.
          html: Write a page for browsers to this file, in place of printing.
        """
        if html is None:
            show(run, Console())
        else:
            write_run_page(run, html)

    try:
        tyro.cli(command, prog="python -m train.show", args=arguments)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
