"""The run folder: settings, metrics, tables and curves."""

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import tlv_jax
from train import curves
from train.config import Config
from train.contents import check_contents, write_contents
from train.data import Splits
from train.devices import is_first_process
from train.errors import ConfigError
from train.metrics import Summary

__all__ = [
    "RunResult",
    "flat_settings",
    "open_run_folder",
    "open_tensorboard",
    "result_table",
    "write_epochs",
    "write_results",
    "write_transfer",
]

CONFIG_FILE = "config.json"
# May differ when a run is resumed: it may have been moved, and may continue on other hosts.
NOT_COMPARED = ("resume", "out", "name", "hosts")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How one training went.

    Attributes:
      name: `transferred`, or `he` for the twin. The twin starts from its own initialization, which
        is He's or close to it in every architecture of the zoo.
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


def open_run_folder(config: Config, splits: Splits) -> Path:
    """Creates the run folder, or finds the one to resume.

    Without `config.resume` an existing folder is left alone: the new one gets a number after its
    name.

    Raises:
      ConfigError: if there is no run to resume, it was started with other settings or other data,
        or the folder cannot be made or read.
    """
    try:
        return _find_run(config, splits) if config.resume else _start_run(config, splits)
    except OSError as error:
        raise ConfigError(
            f"The run folder {config.folder} cannot be used: {error}. Give another with --out."
        ) from error


def _find_run(config: Config, splits: Splits) -> Path:
    folder = config.folder
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"There is no run to resume in {folder}. Leave --resume out.")
    started = _named(json.loads((folder / CONFIG_FILE).read_text()))
    changed = {
        name: started.get(name)
        for name, value in _named(_settings(config)).items()
        if started.get(name) != value and name.partition(".")[0] not in NOT_COMPARED
    }
    if changed:
        was = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        raise ConfigError(
            f"The run in {folder} was started with {was}. Resume it with the same settings, or "
            "start another with --name."
        )
    check_contents(folder, splits)
    return folder


def _start_run(config: Config, splits: Splits) -> Path:
    folder, number = config.folder, 1
    while folder.exists():
        number += 1
        folder = config.folder.with_name(f"{config.folder.name}-{number}")
    folder.mkdir(parents=True)
    write_contents(folder, splits)  # first: a run can be resumed as soon as it has settings
    (folder / CONFIG_FILE).write_text(json.dumps(_settings(config), indent=1))
    return folder


def write_transfer(
    folder: Path, plan: tlv_jax.TransferPlan, report: tlv_jax.TransferReport
) -> None:
    """Writes the plan and the report of a transfer, each as JSON and as a table."""
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "plan.txt").write_text(f"{plan}\n")
    (folder / "report.json").write_text(report.to_json())
    (folder / "report.txt").write_text(f"{report}\n")


@contextlib.contextmanager
def open_tensorboard(folder: Path, first_epoch: int) -> Iterator[Any]:
    """A writer of TensorBoard events; None in other processes, or without tensorboardX.

    TensorBoard ignores what an interrupted run wrote for `first_epoch` and later.
    """
    if not is_first_process() or importlib.util.find_spec("tensorboardX") is None:
        yield None
        return
    from tensorboardX import SummaryWriter  # late: it imports torch where torch is installed

    with SummaryWriter(str(folder), purge_step=first_epoch) as writer:
        yield writer


def write_epochs(folder: Path, epochs: Sequence[Mapping[str, Any]], writer: Any) -> None:
    """Writes `metrics.jsonl`, one record a line, and the last record as TensorBoard events.

    Args:
      folder: of the run.
      epochs: all records so far.
      writer: from `open_tensorboard`; None to write no events.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Rewritten each time: a run that is killed between this and its checkpoint repeats an epoch,
    # which would otherwise be listed twice.
    lines = "".join(json.dumps(record) + "\n" for record in epochs)
    (folder / "metrics.jsonl").write_text(lines)
    if writer is None:
        return
    last = epochs[-1]
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
    (folder / "results.json").write_text(json.dumps(records, indent=1))
    if curves.available():
        curves.save_curves({run.name: run.epochs for run in runs}, folder / "curves.png")


def result_table(runs: Sequence[RunResult], title: str) -> Table:
    """The test metrics of all runs as a table."""
    table = Table(title=title)
    table.add_column("initialization")
    for column in ("accuracy", "balanced accuracy", "loss", "best epoch", "seconds"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            run.name,
            f"{run.test.accuracy:.3f}",
            f"{run.test.balanced_accuracy:.3f}",
            f"{run.test.loss:.3f}",
            str(run.best_epoch),
            f"{run.seconds:.0f}",
        )
    return table


def flat_settings(config: Config) -> dict[str, Any]:
    """Returns all settings as JSON values, by their names on the command line."""
    return _named(_settings(config))


def _settings(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _named(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names on the command line: `method`, `method.rule.keep`."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            named |= _named(value, f"{prefix}{name}.")
        elif prefix and name == "name":
            named[prefix.removesuffix(".")] = value
        else:
            named[prefix + name] = value
    return named
