"""Folders of pictures that are published under a name, as their archives unpack."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from train.errors import DataError, name_some
from train.folders import class_folders
from train.pictures import Found, Members, Notes

__all__ = ["PRESETS", "Preset", "find_preset"]


class Preset(NamedTuple):
    """A published data set.

    Attributes:
      title: its name.
      home: the page that its authors or keepers offer it on.
      layouts: where each part may be below the user's folder; the first layout of which all is
        there counts. A part is a folder of class folders, or a text file that lists `CLASS/NAME` of
        pictures `images/CLASS/NAME.jpg` beside its own folder.
      class_count: how many classes each part has.
      classes: their names; empty to take those that are there.
    """

    title: str
    home: str
    layouts: tuple[Mapping[str, str], ...]
    class_count: int
    classes: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """What to do where it is missing."""
        return f"Get {self.title} from {self.home}, unpack it, and give its folder with --data-dir."


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # "Food-101: Mining Discriminative Components with Random Forests" (Bossard et al., 2014)
        "food101": Preset(
            title="Food-101",
            home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
            layouts=(
                {"train": "food-101/meta/train.txt", "test": "food-101/meta/test.txt"},
                {"train": "meta/train.txt", "test": "meta/test.txt"},
            ),
            class_count=101,
        ),
        # "Asirra: A CAPTCHA that Exploits Interest-Aligned Manual Image Categorization" (Elson et
        # al., 2007). The archive holds files that are no pictures.
        "petimages": Preset(
            title="PetImages (Kaggle Cats and Dogs)",
            home="https://www.microsoft.com/en-us/download/details.aspx?id=54765",
            layouts=({"train": "PetImages"}, {"train": "."}),
            class_count=2,
            classes=("Cat", "Dog"),
        ),
        "intel": Preset(
            title="Intel Image Classification",
            home="https://www.kaggle.com/datasets/puneet6060/intel-image-classification",
            layouts=(
                {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
                {"train": "seg_train", "test": "seg_test"},
            ),
            class_count=6,
            classes=("buildings", "forest", "glacier", "mountain", "sea", "street"),
        ),
    }
)


def find_preset(name: str, folder: Path | None) -> Found:
    """Finds the files of a published data set in the folder that its archive was unpacked to.

    Args:
      name: one of `PRESETS`.
      folder: that folder, or the one that holds it.

    Returns:
      The files of the parts that are published.

    Raises:
      DataError: if the data set is not there, its classes are others, or files are missing that it
        lists. The message says where to get it.
      OSError: if a folder cannot be read.
    """
    preset = PRESETS[name]
    folder, layout = _find(preset, name, folder)
    notes: Notes = defaultdict(list)
    members = {}
    for part, place in layout.items():
        path = folder / place
        members[part] = (
            _listed(preset, path) if path.suffix == ".txt" else class_folders(path, notes)
        )
        _check_classes(preset, path, members[part], members["train"])
    return Found(folder, members, notes)


def _find(preset: Preset, name: str, folder: Path | None) -> tuple[Path, Mapping[str, str]]:
    """The user's folder, and where the parts are in it."""
    if folder is None or not folder.is_dir():
        raise DataError(
            f"The data set {name} is read from a folder, but --data-dir is {folder}. "
            f"{preset.remedy}"
        )
    for layout in preset.layouts:
        if all((folder / place).exists() for place in layout.values()):
            return folder, layout
    places = (" and ".join(layout.values()) for layout in preset.layouts)
    raise DataError(f"{folder} has neither {' nor '.join(places)} in it. {preset.remedy}")


def _listed(preset: Preset, path: Path) -> Members:
    """The pictures that a text file lists, by their classes."""
    images = path.parent.parent / "images"
    members: defaultdict[str, list[Path]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8", errors="replace").split():
        members[line.partition("/")[0]].append(images / f"{line}.jpg")
    files = [file for found in members.values() for file in found]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"{images} lacks {len(missing)} of the {len(files)} pictures that {path} lists, for "
            f"example {missing[0]}. {preset.remedy}"
        )
    return {name: members[name] for name in sorted(members)}


def _check_classes(preset: Preset, path: Path, found: Members, trained: Members) -> None:
    if len(found) != preset.class_count or tuple(found) != (preset.classes or tuple(trained)):
        expected = f": {', '.join(preset.classes)}" if preset.classes else ""
        raise DataError(
            f"{path} has {len(found)} classes ({name_some(found)}), expected the "
            f"{preset.class_count} of {preset.title}{expected}. {preset.remedy}"
        )
