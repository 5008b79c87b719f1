"""The run folder: made once, used by one process at a time, found again to resume."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.config import Config
from train.contents import check_contents, write_contents
from train.data import Splits
from train.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "flat_settings",
    "given_settings",
    "is_in_use",
    "is_run_folder",
    "lasting_settings",
    "named_settings",
    "open_run_folder",
    "read_settings",
]

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
# May differ when a run is resumed: it may have been moved, may continue on other hosts and devices,
# and is the same however often it is saved, whenever its pictures are read and wherever else it is
# recorded.
NOT_COMPARED = (
    *("resume", "out", "name", "hosts", "shard_params", "wandb"),
    *("save_every_steps", "save_every_minutes", "stream", "workers"),
)


@contextlib.contextmanager
def open_run_folder(config: Config, splits: Splits) -> Iterator[Path]:
    """Creates the run folder, or finds the one to resume, and locks it as long as it is open.

    Without `config.resume` an existing folder is left alone: the new one gets a number after its
    name.

    Raises:
      ConfigError: if there is no run to resume, it is still going on, it was started with other
        settings or other data, or the folder cannot be made or read.
    """
    with contextlib.ExitStack() as held:
        try:
            folder = (_find_run if config.resume else _start_run)(config, splits, held)
        except OSError as error:
            raise ConfigError(
                f"The run folder {config.folder} cannot be used: {error}. Give another with --out."
            ) from error
        yield folder


def _find_run(config: Config, splits: Splits, held: contextlib.ExitStack) -> Path:
    folder = config.folder
    if not is_run_folder(folder):
        raise ConfigError(f"There is no run to resume in {folder}. Leave --resume out.")
    held.enter_context(_locked(folder))
    # A run of an earlier version has what is now the default of a setting that it does not know.
    started = flat_settings(Config()) | named_settings(read_settings(folder))
    changed = {
        name: started.get(name)
        for name, value in lasting_settings(config).items()
        if started.get(name) != value
    }
    if changed:
        was = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        raise ConfigError(
            f"The run in {folder} was started with {was}. Resume it with the same settings, or "
            "start another with --name."
        )
    check_contents(folder, splits)
    return folder


def _start_run(config: Config, splits: Splits, held: contextlib.ExitStack) -> Path:
    parent, name = config.folder.parent, config.folder.name
    parent.mkdir(parents=True, exist_ok=True)
    # Renamed once it is complete: where a run folder is seen, it can be resumed.
    new = parent / f".{name}-{uuid.uuid4().hex}"
    new.mkdir()
    try:
        write_contents(new, splits)
        (new / CONFIG_FILE).write_text(json.dumps(_settings(config), indent=1))
        held.enter_context(_locked(new))
        return _rename_to_free(new, config.folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _rename_to_free(new: Path, folder: Path) -> Path:
    """Renames to `folder`, or to the first free `folder-2`, `folder-3`..., in one step each."""
    wanted, number = folder, 1
    while True:
        if not folder.exists():
            try:
                return new.rename(folder)
            except OSError:
                if not folder.exists():  # another process was not quicker
                    raise
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a run folder. The system unlocks it whenever the process ends, however it ends."""
    with (folder / LOCK_FILE).open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConfigError(
                    f"The run in {folder} is still going on, in {file.read().strip()}. Stop that "
                    "first, or start another run with --name."
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a process trains in this run folder now; False where nothing can be locked."""
    if fcntl is None or not (folder / LOCK_FILE).is_file():
        return False
    with (folder / LOCK_FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_run_folder(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / CONFIG_FILE).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings that the run in `folder` was started with, in JSON values.

    Raises:
      ConfigError: if they are missing or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise TypeError(f"a {type(settings).__name__}")
    except OSError as error:
        raise ConfigError(f"There is no run in {folder} ({error}). Give a run folder.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}), expected the settings of a run. Start another run with "
            "--name."
        ) from error
    return settings


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of `named_settings` that have a value; the method sets the others."""
    named = named_settings(settings)
    return {name: value for name, value in named.items() if value is not None and value != []}


def flat_settings(config: Config) -> dict[str, Any]:
    """Returns all settings as JSON values, by their names on the command line."""
    return named_settings(_settings(config))


def lasting_settings(config: Config) -> dict[str, Any]:
    """Returns those of `flat_settings` that stay the same when a run is resumed."""
    settings = flat_settings(config)
    return {k: v for k, v in settings.items() if k.partition(".")[0] not in NOT_COMPARED}


def _settings(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def named_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their names on the command line: `method`, `method.rule.keep`."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            named |= named_settings(value, f"{prefix}{name}.")
        elif prefix and name == "name":
            named[prefix.removesuffix(".")] = value
        else:
            named[prefix + name] = value
    return named
