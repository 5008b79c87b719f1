"""Read a folder of pictures: one sub-folder a class, in one set or in given splits."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from importers.pictures import to_rgb
from tlv_jax.models import ImageError
from train.data import Given, LabelledImages
from train.devices import is_first_process
from train.errors import DataError, name_some

__all__ = ["load_folder", "resize"]

SPLIT_NAMES: Mapping[str, str] = MappingProxyType(  # in any case
    {
        "train": "train",
        "training": "train",
        "val": "validation",
        "valid": "validation",
        "validation": "validation",
        "test": "test",
        "testing": "test",
    }
)
# What operating systems, NAS boxes and archives leave behind. Names with a leading dot go too.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini"),
        *("$recycle.bin", "system volume information"),
    }
)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow raises

Members = dict[str, list[Path]]
"""The files of each class, by its name."""
Notes = defaultdict[str, list[Path]]
"""Files and folders to tell the user of, by what became of them."""


def load_folder(folder: Path, size: int) -> Given:
    """Reads pictures from one sub-folder a class, or from such sub-folders of given splits.

    Splits are folders named `train`, `val` (`valid`, `validation`) and `test`, in any case. They
    count as such if there is a `train` and nothing else beside them. Hidden and system files are
    passed over, at every level, and so are empty folders. Files that are not images are skipped and
    counted.

    Args:
      folder: of the classes, or of the splits.
      size: pixels a side.

    Returns:
      The parts that are given; a folder without splits is all `train`.

    Raises:
      DataError: if the folder could be read in two ways, there are fewer than two classes, a class
        has no readable image or is missing from the training images, or a picture has values that
        cannot be scaled to 8 bits.
      OSError: if a folder cannot be read.
    """
    notes: Notes = defaultdict(list)
    roots, members = _find(folder, notes)
    _check_classes(roots, members)
    classes = tuple(members["train"])
    parts, listing = {}, {}
    for part, root in roots.items():
        parts[part], names = _read_part(root, members[part], classes, size, notes)
        listing |= {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "class": name}
            for path, name in names.items()
        }
    if is_first_process():
        for what, paths in notes.items():
            print(f"{what}: {len(paths)}, for example {paths[0]}")
    return Given(parts, classes, listing)


def resize(picture: Image.Image, size: int) -> np.ndarray:
    """Resizes to `[size, size, C]`; C is 1 for a grey picture."""
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return resized if resized.ndim == 3 else resized[..., None]


def _find(folder: Path, notes: Notes) -> tuple[dict[str, Path], dict[str, Members]]:
    """The folder of each part, and what it holds; all is `train` if no splits are given."""
    found = _sub_folders(folder, notes)
    splits = _splits(folder, found)
    if not splits:
        return {"train": folder}, {"train": found}
    roots = {part: folder / name for part, name in splits.items()}
    return roots, {part: _sub_folders(root, notes) for part, root in roots.items()}


def _splits(folder: Path, found: Members) -> dict[str, str]:
    """The names of the folders of given splits; none if the folders are classes."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name in found:
        names[SPLIT_NAMES.get(name.lower(), "")].append(name)
    others = names.pop("", [])
    if "train" in names and not others:
        for part, same in names.items():
            if len(same) > 1:
                raise DataError(
                    f"{folder} has {' and '.join(same)}, expected one folder of {part} images. "
                    "Merge them or remove all but one."
                )
        return {part: name for part, (name,) in names.items()}
    for name in found:
        if name not in others and all(path.parent != folder / name for path in found[name]):
            beside = f"beside {name_some(others)}" if others else "without a folder train"
            raise DataError(
                f"{folder} has {name}, which looks like a split with sub-folders, {beside}: "
                "expected either train, val and test alone, or one sub-folder a class. Move away "
                f"what does not belong; if {name} is a class, put its pictures directly into it."
            )
    return {}


def _check_classes(roots: Mapping[str, Path], members: Mapping[str, Members]) -> None:
    classes = members["train"]
    if len(classes) < 2:
        raise DataError(
            f"{roots['train']} has {len(classes)} sub-folders with files ({name_some(classes)}), "
            "expected one sub-folder of images for each of two classes or more, directly in it."
        )
    for part, found in members.items():
        if not found:
            raise DataError(
                f"{roots[part]} has no sub-folders with files, expected one a class, as in "
                f"{roots['train']}."
            )
        if strange := found.keys() - classes.keys():
            raise DataError(
                f"{roots[part]} has classes that {roots['train']} lacks "
                f"({name_some(sorted(strange))}), expected some of {name_some(classes)}. Add "
                "training images of them or remove them."
            )


def _sub_folders(folder: Path, notes: Notes) -> Members:
    """The visible files below each visible sub-folder, by its name, in order."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if _is_visible(path.name)):
        if not path.is_dir():
            notes["files beside the class folders, not used"].append(path)
        elif files := _files(path):
            found[path.name] = files
        else:
            notes["empty folders, passed over"].append(path)
    return found


def _files(folder: Path) -> list[Path]:
    def stop(error: OSError) -> None:
        raise error  # os.walk passes over a folder that it cannot read

    files = []
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = filter(_is_visible, folders)
        files += [Path(root, name) for name in names if _is_visible(name)]
    return sorted(path for path in files if path.is_file())


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM_NAMES


def _read_part(
    root: Path, members: Members, classes: tuple[str, ...], size: int, notes: Notes
) -> tuple[LabelledImages, dict[Path, str]]:
    """The pictures of all classes, and the class of each file that was read."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: dict[Path, str] = {}
    for name, files in members.items():
        read = _read_class(root / name, files, size, notes)
        images += read.values()
        labels += [classes.index(name)] * len(read)
        names |= dict.fromkeys(read, name)
    return LabelledImages(np.stack(images), np.array(labels, np.int32)), names


def _read_class(folder: Path, files: list[Path], size: int, notes: Notes) -> dict[Path, np.ndarray]:
    read = {}
    for path in files:
        try:
            with Image.open(path) as image:
                read[path] = resize(to_rgb(image), size)
                if image.has_transparency_data:
                    notes["pictures with an alpha channel, laid on white"].append(path)
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error
        except UNREADABLE:
            notes["unreadable files, skipped"].append(path)
    if not read:
        raise DataError(
            f"The class {folder.name} has no readable image in {folder}, of {len(files)} files, "
            f"for example {files[0].name}. Add images or remove the folder."
        )
    return read
