"""Find the pictures of a folder: one sub-folder a class, in one set or in given splits."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from train.errors import DataError, name_some
from train.pictures import Found, Members, Notes

__all__ = ["class_folders", "find_folder", "visible_files"]

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


def find_folder(folder: Path) -> Found:
    """Finds the files of one sub-folder a class, or of such sub-folders of given splits.

    Splits are folders named `train`, `val` (`valid`, `validation`) and `test`, in any case. They
    count as such if there is a `train` and nothing else beside them. Hidden and system files are
    passed over, at every level, and so are empty folders.

    Args:
      folder: of the classes, or of the splits.

    Returns:
      The files of the parts that are given; a folder without splits is all `train`.

    Raises:
      DataError: if the folder could be read in two ways, there are fewer than two classes, or a
        class is missing from the training images.
      OSError: if a folder cannot be read.
    """
    notes: Notes = defaultdict(list)
    roots, members = _find(folder, notes)
    _check_classes(roots, members)
    return Found(folder, members, notes)


def _find(folder: Path, notes: Notes) -> tuple[dict[str, Path], dict[str, Members]]:
    """The folder of each part, and what it holds; all is `train` if no splits are given."""
    found = class_folders(folder, notes)
    splits = _splits(folder, found)
    if not splits:
        return {"train": folder}, {"train": found}
    roots = {part: folder / name for part, name in splits.items()}
    return roots, {part: class_folders(root, notes) for part, root in roots.items()}


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


def class_folders(folder: Path, notes: Notes) -> Members:
    """Returns the visible files below each visible sub-folder, by its name, in order.

    Raises:
      OSError: if a folder cannot be read.
    """
    found = {}
    for path in sorted(path for path in folder.iterdir() if _is_visible(path.name)):
        if not path.is_dir():
            notes["files beside the class folders, not used"].append(path)
        elif files := visible_files(path):
            found[path.name] = files
        else:
            notes["empty folders, passed over"].append(path)
    return found


def visible_files(folder: Path) -> list[Path]:
    """Returns the visible files anywhere below a folder, in order.

    Raises:
      OSError: if a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error  # os.walk passes over a folder that it cannot read

    files = []
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = filter(_is_visible, folders)
        files += [Path(root, name) for name in names if _is_visible(name)]
    return sorted(path for path in files if path.is_file())


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM_NAMES
