"""Read the picture files of a data set into memory, and say what became of those that differ."""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from importers.pictures import to_rgb
from tlv_jax.models import ImageError
from train.config import OnBadImage
from train.data import Given, LabelledImages
from train.devices import is_first_process
from train.errors import DataError, name_some

__all__ = ["Members", "Notes", "read_pictures", "resize"]

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow raises

Members = dict[str, list[Path]]
"""The files of each class, by its name."""
Notes = defaultdict[str, list[Path]]
"""Files and folders to tell the user of, by what became of them."""


def read_pictures(
    folder: Path, members: Mapping[str, Members], size: int, on_bad_image: OnBadImage, notes: Notes
) -> Given:
    """Reads the pictures of all parts, resized, and prints the notes.

    Args:
      folder: below which all files are; they are listed by their paths in it.
      members: of `train` and of each other part that is given. The classes are those of `train`.
      size: pixels a side.
      on_bad_image: what to do with a file that is damaged or no picture: `skip` it with a note, or
        `stop`.
      notes: of what was found so far; more are added.

    Raises:
      DataError: if a class has no readable picture, a picture has values that cannot be scaled to 8
        bits, the pictures do not fit into memory, or one is damaged and is to stop.
    """
    classes = tuple(members["train"])
    parts, listing = {}, {}
    for part, found in members.items():
        parts[part], names = _read_part(found, classes, size, on_bad_image, notes)
        listing |= {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "class": name}
            for path, name in names.items()
        }
    if is_first_process():
        for what, paths in notes.items():
            print(f"{what}: {len(paths)} ({name_some(paths)})")
    return Given(parts, classes, listing)


def resize(picture: Image.Image, size: int) -> np.ndarray:
    """Resizes to `[size, size, C]`; C is 1 for a grey picture."""
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return resized if resized.ndim == 3 else resized[..., None]


def _read_part(
    members: Members, classes: tuple[str, ...], size: int, on_bad_image: OnBadImage, notes: Notes
) -> tuple[LabelledImages, dict[Path, str]]:
    """The pictures of all classes, and the class of each file that was read."""
    images = _room(sum(map(len, members.values())), size)
    labels: list[int] = []
    names: dict[Path, str] = {}
    for name, files in members.items():
        before = len(labels)
        for path in files:
            picture = _read(path, size, on_bad_image, notes)
            if picture is not None:
                images[len(labels)] = picture
                labels.append(classes.index(name))
                names[path] = name
        if len(labels) == before:
            raise DataError(
                f"The class {name} has no readable image among {len(files)} files, for example "
                f"{files[0]}. Add images or remove its folder."
            )
    return LabelledImages(images[: len(labels)], np.array(labels, np.int32)), names


def _room(count: int, size: int) -> np.ndarray:
    """An array that all pictures are written into: a list of them would need the memory twice."""
    try:
        return np.empty((count, size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{count} pictures of {size} pixels a side take {3e-9 * count * size**2:.1f} GB of "
            "memory, more than there is. Lower --image-size."
        ) from error


def _read(path: Path, size: int, on_bad_image: OnBadImage, notes: Notes) -> np.ndarray | None:
    """One picture; None if it is damaged and skipped."""
    try:
        # Pillow's warnings do not name the file.
        catching = warnings.catch_warnings(record=True, action="always")
        with catching as caught, Image.open(path) as image:
            read = resize(to_rgb(image), size)
            if image.has_transparency_data:
                notes["pictures with an alpha channel, laid on white"].append(path)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from error
    except UNREADABLE as error:
        if on_bad_image == "stop":
            raise DataError(
                f"{path}: cannot be read as a picture ({error}). Repair or remove it, or pass "
                "--on-bad-image skip."
            ) from error
        notes["unreadable files, skipped"].append(path)
        return None
    if caught:
        warning = str(caught[0].message).strip()
        notes[f"pictures read in spite of a warning ({warning})"].append(path)
    return read
