"""Record a run with Weights & Biases, beside what is written to its folder."""

import contextlib
import importlib.util
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.config import Config
from train.devices import is_first_process
from train.errors import ConfigError
from train.results import RunResult, reading, write_whole
from train.run_folder import lasting_settings
from train.starts import TRAININGS

__all__ = ["Tracker", "check_tracking", "open_tracker", "read_tracked_id"]

TRACKING_FILE = "wandb.json"
PROJECT = "tlv-jax"


class Tracker:
    """What records at Weights & Biases. It never ends a training.

    If something fails there, it warns once and records no more.
    """

    def __init__(self, run: Any = None) -> None:
        """Wraps what `wandb.init` returns; None records nothing."""
        self._run = run

    def epoch(self, training: str, record: Mapping[str, Any]) -> None:
        """Records an epoch of a training: `transferred/validation_loss` and so on."""
        values = {f"{training}/{name}": value for name, value in record.items()}
        self._do(lambda run: run.log(values))

    def result(self, result: RunResult) -> None:
        """Records the test metrics of a training as a part of the run's summary."""
        found = {f"test_{name}": value for name, value in result.test._asdict().items()}
        found |= {"best_epoch": result.best_epoch, "seconds": result.seconds}
        self._do(lambda run: run.summary.update({f"{result.name}/{k}": found[k] for k in found}))

    def finish(self, status: int) -> None:
        """Sends what is left, with the exit status of the run."""
        self._do(lambda run: run.finish(exit_code=status))

    def _do(self, act: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # of any kind: it talks to a process and a server
            self._run = None
            _warn(error)


def check_tracking(config: Config) -> None:
    """Raises a ConfigError if Weights & Biases is asked for and not installed."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "wandb=True: Weights & Biases is not installed. pip install 'tlv-jax[wandb]', or leave "
            "--wandb out."
        )


@contextlib.contextmanager
def open_tracker(config: Config, folder: Path) -> Iterator[Tracker]:
    """Starts a run at Weights & Biases, or goes on with that of a resumed run.

    Without `config.wandb`, and in other processes than the first, nothing is recorded.

    Args:
      config: the settings, resolved.
      folder: the run folder, which keeps the id that the run has there.

    Raises:
      ConfigError: if the file with that id is damaged.
      SaveError: if it cannot be written.
    """
    if not config.wandb or not is_first_process():
        yield Tracker()
        return
    identity = read_tracked_id(folder)
    if identity is None:
        identity = uuid.uuid4().hex[:12]
        write_whole(folder / TRACKING_FILE, json.dumps({"id": identity}))
    tracker = Tracker(_start(config, folder.name, identity))
    try:
        yield tracker
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)


def read_tracked_id(folder: Path) -> str | None:
    """Returns the id that a run has at Weights & Biases; None if it has none.

    Raises:
      ConfigError: if the file with the id is damaged.
    """
    path = folder / TRACKING_FILE
    if not path.is_file():
        return None
    with reading(path):
        return str(json.loads(path.read_text())["id"])


def _start(config: Config, name: str, identity: str) -> Any:
    try:
        import wandb  # late: it takes a while, and few use it

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=identity,
            resume="allow",
            config=lasting_settings(config),
            settings=wandb.Settings(console="off"),  # the progress bar is no text to keep
        )
        # The epochs of each training are an axis of its own.
        for training in TRAININGS:
            run.define_metric(f"{training}/*", step_metric=f"{training}/epoch")
    except Exception as error:
        _warn(error)
        return None
    return run


def _warn(error: Exception) -> None:
    text = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    warnings.warn(
        f"Weights & Biases failed ({text}): the run goes on and is no longer recorded there. Its "
        "folder has all metrics.",
        stacklevel=2,
    )
