"""`tlv-jax`, or `python -m train.commands`: reads the command line and hands it on."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import subcommand

import importers.__main__ as files
import train.__main__ as training
import train.compare.__main__ as comparing
import train.rank.__main__ as ranking
from importers.exits import exit_status
from train.commands.settings import Export, Fit, Pair, Plan, Report, Similarity, Transfer
from train.compare import Settings as Comparison
from train.config import Config
from train.rank import Settings as Ranking

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Show:
    """Show an architecture with its published weights and keys, or a run.

    Attributes:
      what: an architecture, or the folder of a run.
      html: write a page for browsers to this file, in place of printing; of a run only.
    """

    what: Annotated[str, tyro.conf.Positional]
    html: Path | None = None


Command = (
    Transfer
    | Plan
    | Similarity
    | Fit
    | Report
    | Annotated[Config, subcommand("train", description=training.DESCRIPTION)]
    | Annotated[Comparison, subcommand("compare", description=comparing.DESCRIPTION)]
    | Annotated[Ranking, subcommand("rank", description=ranking.DESCRIPTION)]
    | Show
    | files.List
    | files.Convert
    | files.Verify
    | Export
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit status: 0 when it is done; 1 after an error of `train`, `compare` or `rank`, or a
      check of `verify` that failed; 2 for bad input of the others; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # As `python -m` does, for MODULE:NAME. Last, so that no file there hides an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    match tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="tlv-jax",
        description="Carry pretrained weights into other architectures, and train them.",
        args=given,
    ):
        case Comparison() as settings:  # before Config, of which it is one
            return comparing.execute(settings)
        case Config() as config:
            return training.execute(config, ["tlv-jax", *given])
        case Ranking() as settings:
            return ranking.execute(settings)
        case Show() as shown:
            return _show(shown)
        case Pair() | Export() as settings:
            return exit_status(lambda: _run(settings))
        case command:
            return files.execute(command)


def _show(shown: Show) -> int:
    """Shows what the word names: a path is a run, any other word an architecture."""
    what, html = shown.what, shown.html
    # With --html any word is a run: an architecture has no page.
    if html is not None or Path(what).is_dir() or Path(what).name != what:
        return exit_status(lambda: _show_run(Path(what), html))
    return files.execute(files.Show(what))


def _show_run(folder: Path, html: Path | None) -> int:
    from rich.console import Console

    from train.run_page import write_run_page
    from train.show import show

    if html is None:
        show(folder, Console())
    else:
        write_run_page(folder, html)
    return 0


def _run(settings: Pair | Export) -> int:
    # Imported only now: it brings JAX and Flax, which --help need not wait for.
    from train.commands.running import run

    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
