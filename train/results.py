"""What a run writes into its folder: metrics, tables and curves."""

import contextlib
import dataclasses
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import tlv_jax
from train import curves
from train.devices import is_first_process
from train.errors import ConfigError, SaveError
from train.metrics import Summary
from train.run_folder import is_in_use
from train.statistics import Statistics

__all__ = [
    "EPOCH_COLUMNS",
    "RESULT_COLUMNS",
    "RunResult",
    "epoch_cells",
    "open_tensorboard",
    "read_metrics",
    "read_normalization",
    "read_results",
    "read_transfer",
    "reading",
    "result_cells",
    "result_table",
    "state_of",
    "write_epochs",
    "write_normalization",
    "write_results",
    "write_transfer",
    "write_whole",
]

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
NORMALIZATION_FILE = "normalization.json"
MEASURED = ("train_loss", "validation_loss", "validation_accuracy", "validation_balanced_accuracy")
EPOCH_COLUMNS = ("epoch", *(name.replace("_", " ") for name in MEASURED))
RESULT_COLUMNS = (
    *("initialization", "accuracy", "balanced accuracy", "loss", "best epoch", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How one training went.

    Attributes:
      name: where it started from: `transferred`; `finetune` for the weights that the target was
        given; or `he` for its own initialization, which is He's or close to it in every
        architecture of the zoo. The last two with `+crossover` behind them, if features were lent.
      test: of the test images, with the weights of the best epoch.
      best_epoch: the epoch that was best on the validation images, from 1.
      seconds: wall-clock time of training and validation, with compilation.
      epochs: one record per epoch, as in `metrics.jsonl`.
    """

    name: str
    test: Summary
    best_epoch: int
    seconds: float
    epochs: tuple[Mapping[str, Any], ...]


def write_transfer(
    folder: Path,
    plan: tlv_jax.TransferPlan | None,
    report: tlv_jax.TransferReport | tlv_jax.FitReport,
) -> None:
    """Writes the plan of a transfer, if it has one, and its report, as JSON and as a table.

    Raises:
      SaveError: if they cannot be written, as in the functions below.
    """
    if plan is not None:
        write_whole(folder / "plan.json", plan.to_json())
        write_whole(folder / "plan.txt", f"{plan}\n")
    write_whole(folder / "report.json", report.to_json())
    write_whole(folder / "report.txt", f"{report}\n")


def read_transfer(
    folder: Path,
) -> tuple[tlv_jax.TransferReport | tlv_jax.FitReport, tlv_jax.TransferPlan | None] | None:
    """Returns the report of a run's transfer or fit, and its plan; None for a run without either.

    Raises:
      ConfigError: if a file is damaged.
    """
    path, plan = folder / "report.json", folder / "plan.json"
    if not path.is_file():
        return None
    kind = tlv_jax.TransferReport if plan.is_file() else tlv_jax.FitReport
    with reading(path):
        report = kind.from_json(path.read_text())
    with reading(plan):
        return report, tlv_jax.TransferPlan.from_json(plan.read_text()) if plan.is_file() else None


def write_normalization(folder: Path, statistics: Statistics) -> None:
    """Writes by which mean and standard deviation the images of a run are normalized.

    Raises:
      SaveError: if it cannot be written.
    """
    write_whole(folder / NORMALIZATION_FILE, json.dumps(statistics._asdict()))


def read_normalization(folder: Path) -> Statistics | None:
    """Returns by what the images of a run are normalized; None for a run of an earlier version.

    Raises:
      ConfigError: if the file is damaged.
    """
    path = folder / NORMALIZATION_FILE
    if not path.is_file():
        return None
    with reading(path):
        found = json.loads(path.read_text())
        return Statistics(tuple(map(float, found["mean"])), tuple(map(float, found["std"])))


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
      SaveError: if it cannot be written.
    """
    new = path.with_name(f"{path.name}.new")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        os.replace(new, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path} cannot be written: {error}. What was saved before is intact: make room, or "
            "allow it, and go on with --resume."
        ) from error


@contextlib.contextmanager
def open_tensorboard(folder: Path, first_epoch: int) -> Iterator[Any]:
    """A writer of TensorBoard events; None in other processes, or without tensorboardX.

    TensorBoard ignores what an interrupted run wrote for `first_epoch` and later.

    Raises:
      SaveError: if the last events cannot be written.
    """
    if not is_first_process() or importlib.util.find_spec("tensorboardX") is None:
        yield None
        return
    from tensorboardX import SummaryWriter  # late: it imports torch where torch is installed

    with _writing(folder):
        writer = SummaryWriter(str(folder), purge_step=first_epoch)
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(OSError):  # where it stopped is what counts
            writer.close()
        raise
    with _writing(folder):
        writer.close()


def write_epochs(folder: Path, epochs: Sequence[Mapping[str, Any]], writer: Any) -> None:
    """Writes `metrics.jsonl`, one record a line, and the last record as TensorBoard events.

    Args:
      folder: of the run.
      epochs: all records so far.
      writer: from `open_tensorboard`; None to write no events.
    """
    # Rewritten each time: a run that is killed between this and its checkpoint repeats an epoch,
    # which would otherwise be listed twice.
    lines = "".join(json.dumps(record) + "\n" for record in epochs)
    write_whole(folder / METRICS_FILE, lines)
    if writer is None:
        return
    last = epochs[-1]
    with _writing(folder):
        for name, value in last.items():
            if name != "epoch":
                writer.add_scalar(name, value, last["epoch"])
        writer.flush()


def write_results(folder: Path, runs: Sequence[RunResult]) -> None:
    """Writes `results.json` and, where matplotlib is installed, `curves.png`."""
    records = [
        {
            "name": run.name,
            "test": run.test._asdict(),
            "best_epoch": run.best_epoch,
            "seconds": run.seconds,
        }
        for run in runs
    ]
    write_whole(folder / RESULTS_FILE, json.dumps(records, indent=1))
    if curves.available():
        with _writing(folder):
            curves.save_curves({run.name: run.epochs for run in runs}, folder / "curves.png")


def read_metrics(folder: Path) -> dict[str, tuple[dict[str, Any], ...]]:
    """Returns the records of the finished epochs of each training of a run.

    Raises:
      ConfigError: if a file is damaged.
    """
    records = {}
    for path in sorted(folder.glob(f"*/{METRICS_FILE}")):
        with reading(path):
            records[path.parent.name] = tuple(map(json.loads, path.read_text().splitlines()))
    return records


def read_results(folder: Path) -> tuple[RunResult, ...]:
    """Returns how the trainings of a run went; empty before it is finished.

    Raises:
      ConfigError: if a file is damaged.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        return ()
    epochs = read_metrics(folder)
    with reading(path):
        return tuple(
            RunResult(
                name=record["name"],
                test=Summary(**record["test"]),
                best_epoch=record["best_epoch"],
                seconds=record["seconds"],
                epochs=epochs[record["name"]],
            )
            for record in json.loads(path.read_text())
        )


def state_of(folder: Path) -> str:
    """Whether a run is going on, finished, or stopped before its end."""
    if is_in_use(folder):
        return "running"
    return "finished" if (folder / RESULTS_FILE).is_file() else "stopped; --resume it"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file of a run into a ConfigError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error!r}), expected what a run writes. Repeat its end with "
            "--resume."
        ) from error


def result_table(runs: Sequence[RunResult], title: str) -> Table:
    """The test metrics of all runs as a table."""
    table = Table(title=title)
    table.add_column(RESULT_COLUMNS[0])
    for column in RESULT_COLUMNS[1:]:
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(*result_cells(run))
    return table


def result_cells(run: RunResult) -> tuple[str, ...]:
    """The test metrics of a run as texts, in the order of `RESULT_COLUMNS`."""
    return (
        run.name,
        f"{run.test.accuracy:.3f}",
        f"{run.test.balanced_accuracy:.3f}",
        f"{run.test.loss:.3f}",
        str(run.best_epoch),
        f"{run.seconds:.0f}",
    )


def epoch_cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of `metrics.jsonl` as texts, in the order of `EPOCH_COLUMNS`."""
    return str(record["epoch"]), *(f"{record[name]:.3f}" for name in MEASURED)
