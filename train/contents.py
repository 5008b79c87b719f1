"""What a run reads, images and the source's weights: compared between hosts and on resuming."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.config import Config
from train.data import PARTS, Splits
from train.devices import same_everywhere
from train.digests import digest_of
from train.errors import ConfigError, DataError, name_some
from train.pictures import Listing

__all__ = [
    "check_contents",
    "check_hosts",
    "check_weights",
    "classes_of",
    "known_files",
    "read_counts",
    "show_contents",
    "show_counts",
    "write_contents",
]

DATA_FILE = "data.json"
WEIGHTS_FILE = "weights.json"
MOST_ROWS = 20  # of classes that are printed


def check_hosts(splits: Splits, weights: Any) -> None:
    """Compares what every host has read a copy of its own of.

    Args:
      splits: the data set.
      weights: of the source, a tree of arrays.

    Raises:
      DataError: on all hosts, if one has read something else.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(_contents(splits), sort_keys=True)
    if not same_everywhere(hashlib.sha256(text.encode()).hexdigest()):
        images = sum(len(getattr(splits, part)) for part in PARTS)
        raise DataError(
            f"The hosts read different images; this one read {images}. Give every host the same "
            "files in --data-dir."
        )
    if not same_everywhere(digest_of(weights)):
        raise DataError(
            "The hosts read different weights of the source. Give every host the same file in "
            "--source-weights, or the same package."
        )


def check_weights(folder: Path, names: Sequence[str], weights: Sequence[Any]) -> None:
    """Compares the sources' weights with those that the run in `folder` was started with.

    A new run, or one of an earlier version, gets a file with their digests.

    Args:
      folder: of the run.
      names: of the sources.
      weights: of each, a tree of arrays.

    Raises:
      ConfigError: if they have changed, or the file is damaged.
    """
    path, now = folder / WEIGHTS_FILE, [digest_of(tree) for tree in weights]
    if not path.is_file():
        path.write_text(json.dumps(now, indent=1))
        return
    try:
        pairs = list(zip(names, json.loads(path.read_text()), now, strict=True))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}), expected a digest of the weights of each source. Start "
            "another run with --name."
        ) from error
    if changed := [name for name, started, digest in pairs if digest != started]:
        raise ConfigError(
            f"The weights of {', '.join(changed)} have changed since the run in {folder} was "
            "started. Resume it with the same, or start another with --name."
        )


def known_files(config: Config) -> Listing:
    """Returns the files that could be read when the run began that is resumed; else none."""
    try:
        kept = json.loads((config.folder / DATA_FILE).read_text()) if config.resume else {}
        return kept.get("files", {})
    except (OSError, ValueError, AttributeError):
        return {}  # `check_contents` says what is wrong with it


def show_contents(splits: Splits, console: Console) -> None:
    """Prints the number of images of each class in each part, and which classes a part lacks."""
    show_counts(splits.counts(), console)


def show_counts(counts: Mapping[str, Mapping[str, int]], console: Console) -> None:
    """Prints counts as of `Splits.counts`, as `show_contents` does."""
    classes = list(counts[PARTS[0]])
    table = Table(title="images", show_footer=len(classes) > 1)
    table.add_column("class", footer="all")
    for part in PARTS:
        table.add_column(part, justify="right", footer=str(sum(counts[part].values())))
    for name in classes[:MOST_ROWS]:
        table.add_row(Text(name), *(str(counts[part][name]) for part in PARTS))
    if (more := len(classes) - MOST_ROWS) > 0:
        table.add_row(f"{more} more, see {DATA_FILE}", *["..."] * len(PARTS))
    console.print(table)
    for part in PARTS:
        if absent := [name for name, count in counts[part].items() if not count]:
            text = f"classes without {part} images: {len(absent)} ({name_some(absent)})"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def write_contents(folder: Path, splits: Splits) -> None:
    """Writes `data.json`: the classes, the counts of each part, and the listing of all files."""
    (folder / DATA_FILE).write_text(json.dumps(_contents(splits), indent=1))


def read_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Returns the counts of each class in each part, which `write_contents` wrote.

    Raises:
      ConfigError: if they are missing or damaged.
    """
    path = folder / DATA_FILE
    try:
        counts = json.loads(path.read_text())["counts"]
        return {part: dict(counts[part]) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error!r}), expected the counts of a data set. Give the "
            "folder of another run."
        ) from error


def classes_of(folder: Path) -> int:
    """Returns the number of classes of a run.

    Raises:
      ConfigError: as `read_counts`.
    """
    return len(read_counts(folder)[PARTS[0]])


def check_contents(folder: Path, splits: Splits) -> None:
    """Compares with what the run in `folder` was started with.

    A run folder of an earlier version, without a listing, gets one.

    Raises:
      ConfigError: if the data set has changed, with what was added, removed and changed.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        print(f"{path} is missing, so changes of the data set since the start are not noticed")
        write_contents(folder, splits)
        return
    try:
        started = json.loads(path.read_text())
        changes = _changes(started, _contents(splits))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!r}), expected the listing of a data set. Start another run "
            "with --name."
        ) from error
    if changes:
        raise ConfigError(
            f"The data set has changed since the run in {folder} was started: {changes}. Resume it "
            "with the same data, or start another with --name."
        )


def _contents(splits: Splits) -> dict[str, Any]:
    return {
        "classes": list(splits.classes),
        "counts": splits.counts(),
        "files": dict(splits.listing),
    }


def _changes(started: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is different, with counts and examples; empty if nothing is."""
    was, files = started["files"], now["files"]
    found = {
        "classes added": [name for name in now["classes"] if name not in started["classes"]],
        "classes removed": [name for name in started["classes"] if name not in now["classes"]],
        "files added": [path for path in files if path not in was],
        "files removed": [path for path in was if path not in files],
        "files changed": [path for path in files if path in was and files[path] != was[path]],
    }
    return "; ".join(
        f"{what}: {len(names)} ({name_some(names)})" for what, names in found.items() if names
    )
