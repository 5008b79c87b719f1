"""The folder of a comparison: made once, with its settings and the listing of its images."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from train.compare.settings import EXTENT, REPLACED, Settings
from train.contents import check_contents, write_contents
from train.data import Splits
from train.errors import ConfigError
from train.run_folder import flat_settings

__all__ = ["kept_settings", "open_folder"]

SETTINGS_FILE = "settings.json"
# May differ when a comparison is continued: it may have been moved, and may be made larger.
NOT_COMPARED = (*EXTENT, *REPLACED, "out", "name")


def open_folder(settings: Settings, splits: Splits) -> Path:
    """Makes the folder of a comparison, or finds the one to continue.

    Returns:
      Its path.

    Raises:
      ConfigError: if it was started with other settings or other data, is something else, or cannot
        be made or read.
    """
    folder = settings.folder
    try:
        if not folder.exists():
            _make_folder(settings, splits)
        _check_settings(folder, settings)
        check_contents(folder, splits)
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} cannot be used: {error}. Give another with --out."
        ) from error
    return folder


def kept_settings(settings: Settings) -> dict[str, Any]:
    """The settings that all trainings of a folder share, by their names on the command line."""
    shared = flat_settings(settings)
    own = {name for name in shared if name.partition(".")[0] in NOT_COMPARED}
    return {name: value for name, value in shared.items() if name not in own}


def _make_folder(settings: Settings, splits: Splits) -> None:
    """All at once: the parts of a job array start together."""
    folder = settings.folder
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    write_contents(draft, splits)
    (draft / SETTINGS_FILE).write_text(json.dumps(kept_settings(settings), indent=1))
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        if not folder.exists():
            raise


def _check_settings(folder: Path, settings: Settings) -> None:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is there and is no comparison: it has no {SETTINGS_FILE}. Give another with "
            "--name."
        )
    # One of an earlier version has what is now the default of a setting that it does not know.
    started = kept_settings(Settings()) | json.loads(path.read_text())
    now = kept_settings(settings)
    changed = [name for name in {**started, **now} if started.get(name) != now.get(name)]
    if changed:
        was = ", ".join(f"{name}={started.get(name)!r}" for name in changed)
        raise ConfigError(
            f"The comparison in {folder} was started with {was}. Continue it with the same "
            "settings, or start another with --name."
        )
