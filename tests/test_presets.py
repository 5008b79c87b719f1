"""Published folders of pictures, in the layouts of their archives."""

import shutil

import numpy as np
import pytest
from PIL import Image

from train.config import Config
from train.datasets import load_dataset
from train.errors import DataError

SCENES = ("buildings", "forest", "glacier", "mountain", "sea", "street")


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), colour).save(path, quality=95)


def load(dataset, folder):
    return load_dataset(Config(dataset=dataset, data_dir=folder, image_size=8))


def sizes(splits):
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


@pytest.fixture
def food(tmp_path):
    """Seven training pictures of each class, dark, and two test pictures, bright."""
    root = tmp_path / "food-101"
    lines = {"train": [], "test": []}
    for label in range(101):
        for number in range(9):
            part = "train" if number < 7 else "test"
            lines[part].append(f"dish_{label:03}/{number}")
            save(root / "images" / f"{lines[part][-1]}.jpg", (200 * (part == "test"), label, 0))
    (root / "meta").mkdir()
    for part, pictures in lines.items():
        (root / "meta" / f"{part}.txt").write_text("\n".join(reversed(pictures)) + "\n")
    return root


def test_food_101_is_divided_as_its_lists_say(food):
    splits = load("food101", food.parent)
    assert splits.classes == tuple(f"dish_{label:03}" for label in range(101))
    assert sizes(splits) == [606, 101, 202]
    assert splits.train.images.shape == (606, 8, 8, 3)
    for part, red in ((splits.train, 0), (splits.validation, 0), (splits.test, 200)):
        np.testing.assert_allclose(part.images[:, 4, 4, 0], red, atol=3)
        np.testing.assert_allclose(part.images[:, 4, 4, 1], part.labels, atol=3)
    assert "food-101/images/dish_100/8.jpg" in splits.listing


def test_food_101_is_found_by_its_own_folder_too(food):
    assert sizes(load("food101", food)) == [606, 101, 202]


def test_pictures_that_food_101_lists_and_lacks_stop_the_run(food):
    shutil.rmtree(food / "images" / "dish_007")
    message = r"lacks 7 of the 707 pictures that .*train\.txt lists.* Get Food-101 from https://"
    with pytest.raises(DataError, match=message):
        load("food101", food)


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_that_food_101_lacks_stop_the_run(food, part):
    path = food / "meta" / f"{part}.txt"
    kept = [line for line in path.read_text().split() if "dish_007" not in line]
    path.write_text("\n".join(kept))
    with pytest.raises(DataError, match=rf"{path} has 100 classes .*expected the 101 of Food-101"):
        load("food101", food)


@pytest.fixture
def pets(tmp_path):
    """Ten cats and ten dogs, and what else is in the archive."""
    root = tmp_path / "PetImages"
    for red, name in ((0, "Cat"), (200, "Dog")):
        for number in range(10):
            save(root / name / f"{number}.jpg", (red, 0, 0))
        (root / name / "Thumbs.db").write_bytes(b"no picture")
    (root / "Cat" / "666.jpg").touch()
    (root / "Dog" / "11702.jpg").touch()
    (tmp_path / "readme[1].txt").write_text("Asirra")
    return root


def test_petimages_is_read_without_its_damaged_files(pets, capsys):
    for folder in (pets, pets.parent):
        splits = load("petimages", folder)
        assert splits.classes == ("Cat", "Dog")
        assert sizes(splits) == [14, 2, 4]
        np.testing.assert_array_equal(splits.train.images[:, 4, 4, 0] > 100, splits.train.labels)
        printed = capsys.readouterr().out
        assert f"skipped: 2 ({pets}/Cat/666.jpg, {pets}/Dog/11702.jpg)" in printed


def test_petimages_with_other_classes_is_refused(pets):
    (pets / "Dog").rename(pets / "Wolf")
    message = r"2 classes \(Cat, Wolf\), expected the 2 .*: Cat, Dog\. Get PetImages.* --data-dir"
    with pytest.raises(DataError, match=message):
        load("petimages", pets)


@pytest.mark.parametrize("double", [True, False])
def test_intel_s_scenes_have_their_own_test_images(tmp_path, double):
    for part, count in (("seg_train", 7), ("seg_test", 3)):
        for label, name in enumerate(SCENES):
            for number in range(count):
                inner = tmp_path / part / part if double else tmp_path / part
                save(inner / name / f"{number}.jpg", (200 * (part == "seg_test"), 40 * label, 0))
    save(tmp_path / "seg_pred" / "seg_pred" / "1.jpg", "blue")
    splits = load("intel", tmp_path)
    assert splits.classes == SCENES
    assert sizes(splits) == [36, 6, 18]
    for part, red in ((splits.train, 0), (splits.validation, 0), (splits.test, 200)):
        np.testing.assert_allclose(part.images[:, 4, 4, 0], red, atol=3)
        np.testing.assert_allclose(part.images[:, 4, 4, 1], 40 * part.labels, atol=3)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "food101",
            r"has neither food-101/meta/train\.txt and .* Get Food-101 from https://data\.v",
        ),
        ("petimages", r"has 0 classes \(none\).* Get PetImages .* from https://www\.microsoft\."),
        (
            "intel",
            r"has neither seg_train/seg_train and .* Get Intel .* from https://www\.kaggle\.",
        ),
    ],
)
def test_a_folder_without_the_data_set_is_told_where_to_get_it(tmp_path, dataset, message):
    with pytest.raises(DataError, match=rf"^{tmp_path} {message}.*with --data-dir\.$"):
        load(dataset, tmp_path)


@pytest.mark.parametrize("dataset", ["food101", "petimages", "intel"])
def test_a_preset_without_a_folder_is_told_where_to_get_it(dataset):
    with pytest.raises(DataError, match=r"but --data-dir is None\. Get .* from https://"):
        load(dataset, None)
