"""Read the picture files of a data set, and say what became of those that differ."""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.ahead import work_ahead
from train.config import OnBadImage
from train.data import Given, Images, LabelledImages, PictureFiles
from train.decoding import Read, catch_warnings, read_picture
from train.devices import is_first_process
from train.errors import DataError, name_some

__all__ = ["Found", "Listing", "Members", "Notes", "check_pictures", "read_pictures"]

BLOCK = 32  # files that a thread checks at a time

Members = dict[str, list[Path]]
"""The files of each class, by its name."""
Notes = defaultdict[str, list[Path]]
"""Files and folders to tell the user of, by what became of them."""
Listing = Mapping[str, Mapping[str, Any]]
"""Of files by their paths: their bytes and their class."""


class Found(NamedTuple):
    """The files of a data set.

    Attributes:
      folder: below which all files are; they are listed by their paths in it.
      members: of `train` and of each other part that is given. The classes are those of `train`.
      notes: of what was found so far.
    """

    folder: Path
    members: Mapping[str, Members]
    notes: Notes


def read_pictures(found: Found, size: int, on_bad_image: OnBadImage) -> Given:
    """Reads the pictures of all parts into memory, resized, and prints the notes.

    Args:
      found: the files.
      size: pixels a side.
      on_bad_image: what to do with a file that is damaged or no picture: `skip` it with a note, or
        `stop`.

    Raises:
      DataError: if a class has no readable picture, a picture has values that cannot be scaled to 8
        bits, the pictures do not fit into memory, or one is damaged and is to stop.
    """
    read = functools.partial(read_picture, size=size)
    parts: dict[str, Images] = {}
    names: dict[Path, str] = {}
    with catch_warnings():
        for part, members in found.members.items():
            files = _files(members)
            pixels, used = _room(len(files), size), []
            for path, name, picture in _usable(found, part, map(read, files), on_bad_image):
                pixels[len(used)] = picture.pixels
                used.append((path, name))
            parts[part] = LabelledImages(pixels[: len(used)], _labels(found, used))
            names |= used
    return _given(found, parts, names)


def check_pictures(
    found: Found, size: int, on_bad_image: OnBadImage, workers: int, known: Listing
) -> Given:
    """Reads each file once, to give the parts as files that can be read, and prints the notes.

    What is skipped and what is refused is the same as in memory. So is the order of the pictures.

    Args:
      found: the files.
      size: pixels a side, to which they will be resized.
      on_bad_image: as of `read_pictures`.
      workers: processes that read; 0: threads of this one.
      known: files that could be read before. They are not checked if they have as many bytes.

    Raises:
      DataError: as `read_pictures`, but for the memory.
    """
    new = {
        path
        for path in chain.from_iterable(map(_files, found.members.values()))
        if known.get(_listed(found, path), {}).get("bytes") != path.stat().st_size
    }
    if new and is_first_process():
        print(f"pictures to read once, to find those that are damaged: {len(new)}", flush=True)
    parts: dict[str, Images] = {}
    names: dict[Path, str] = {}
    for part, members in found.members.items():
        files = [path for path in _files(members) if path in new]
        blocks = [files[start : start + BLOCK] for start in range(0, len(files), BLOCK)]
        with contextlib.closing(work_ahead(_check_all, blocks, workers)) as ahead:
            checked = chain.from_iterable(ahead)
            reads = (next(checked) if path in new else Read() for path in _files(members))
            used = [(path, name) for path, name, _ in _usable(found, part, reads, on_bad_image)]
        paths = np.array([path for path, _ in used], object)
        parts[part] = PictureFiles(paths, _labels(found, used), size, workers)
        names |= used
    return _given(found, parts, names)


def _check_all(paths: Sequence[Path]) -> list[Read]:
    return [read_picture(path, None) for path in paths]


def _files(members: Members) -> list[Path]:
    return list(chain.from_iterable(members.values()))


def _listed(found: Found, path: Path) -> str:
    return path.relative_to(found.folder).as_posix()


def _labels(found: Found, used: Sequence[tuple[Path, str]]) -> np.ndarray:
    label_of = {name: label for label, name in enumerate(found.members["train"])}
    return np.array([label_of[name] for _, name in used], np.int32)


def _given(found: Found, parts: Mapping[str, Images], names: Mapping[Path, str]) -> Given:
    """Prints the notes, and lists what was read."""
    if is_first_process():
        for what, paths in found.notes.items():
            print(f"{what}: {len(paths)} ({name_some(paths)})")
    listing = {
        _listed(found, path): {"bytes": path.stat().st_size, "class": name}
        for path, name in names.items()
    }
    return Given(parts, tuple(found.members["train"]), listing)


def _usable(
    found: Found, part: str, reads: Iterator[Read], on_bad_image: OnBadImage
) -> Iterator[tuple[Path, str, Read]]:
    """The pictures of a part that are used, with their classes, of what became of all its files."""
    for name, files in found.members[part].items():
        count = 0
        for path, read in zip(files, reads, strict=False):  # they go on in the next class
            if read.refused:
                raise DataError(f"{path}: {read.refused}")
            if read.unreadable and on_bad_image == "stop":
                raise DataError(
                    f"{path}: cannot be read as a picture ({read.unreadable}). Repair or remove "
                    "it, or pass --on-bad-image skip."
                )
            for note in read.notes:
                found.notes[note].append(path)
            if read.unreadable:
                found.notes["unreadable files, skipped"].append(path)
                continue
            count += 1
            yield path, name, read
        if not count:
            raise DataError(
                f"The class {name} has no readable image among {len(files)} files, for example "
                f"{files[0]}. Add images or remove its folder."
            )


def _room(count: int, size: int) -> np.ndarray:
    """An array that all pictures are written into: a list of them would need the memory twice."""
    try:
        return np.empty((count, size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{count} pictures of {size} pixels a side take {3e-9 * count * size**2:.1f} GB of "
            "memory, more than there is. Pass --stream, to read them when their batch comes, or "
            "lower --image-size."
        ) from error
