"""Folders of pictures, as users bring them: classes, splits, and what is neither."""

import numpy as np
import pytest
from PIL import Image

from train.config import Config
from train.datasets import load_dataset
from train.errors import DataError


def fill(folder, *, count=10, red=0):
    """Makes pictures in a folder, each with its number in green."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (20, 30), (red, number, 0)).save(folder / f"{number}.png")


def load(folder, on_bad_image="skip", size=8):
    return load_dataset(
        Config(dataset="folder", data_dir=folder, image_size=size, on_bad_image=on_bad_image)
    )


def sizes(splits):
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


@pytest.fixture
def image_folder(tmp_path):
    fill(tmp_path / "cats")
    fill(tmp_path / "dogs", red=255)
    return tmp_path


def test_an_image_folder_has_its_classes_sorted_and_bad_files_counted(image_folder, capsys):
    (image_folder / "cats" / "broken.jpg").write_bytes(b"no image")
    (image_folder / "cats" / "empty.jpg").touch()
    splits = load(image_folder)
    assert splits.classes == ("cats", "dogs")
    assert sum(sizes(splits)) == 20
    np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0] == 255, splits.train.labels == 1)
    printed = capsys.readouterr().out
    assert (
        f"unreadable files, skipped: 2 ({image_folder}/cats/broken.jpg, {image_folder}/" in printed
    )
    assert "cut from the training images: 15% for validation and for test" in printed


@pytest.mark.parametrize("bad", ["empty", "text", "cut off"])
def test_a_bad_file_is_skipped_by_name_or_stops_the_run(image_folder, capsys, bad):
    path = image_folder / "dogs" / "5.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    content = {"empty": b"", "text": b"not found", "cut off": path.read_bytes()[:-100]}[bad]
    path.write_bytes(content)
    kept = load(image_folder)
    assert sum(sizes(kept)) == 20
    assert not (kept.train.images[..., 2] > 0).any()  # no rest of memory stands for the picture
    assert f"unreadable files, skipped: 1 ({path})" in capsys.readouterr().out
    with pytest.raises(DataError, match=rf"{path}: cannot be read .*pass --on-bad-image skip"):
        load(image_folder, on_bad_image="stop")


def test_a_picture_with_damaged_tags_is_read_and_named(image_folder, capsys):
    path = image_folder / "dogs" / "5.jpg"
    cut_off = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    Image.new("RGB", (20, 20), "red").save(path, exif=cut_off)
    assert sum(sizes(load(image_folder, on_bad_image="stop"))) == 21
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "5.jpg" in line]
    assert line.startswith("pictures read in spite of a warning (Corrupt EXIF data.")
    assert line.endswith(f": 1 ({path})")


def test_good_pictures_are_read_where_a_bad_one_would_stop_the_run(image_folder):
    assert load(image_folder, on_bad_image="stop").listing == load(image_folder).listing


def test_pictures_that_do_not_fit_into_memory_are_refused(image_folder):
    with pytest.raises(
        DataError, match=r"20 pictures of 4194304 .* GB .*Pass --stream.*lower --image-size"
    ):
        load(image_folder, size=1 << 22)


def test_a_class_may_have_folders_of_its_own(image_folder):
    fill(image_folder / "dogs" / "poodles" / "white", count=5)
    assert sum(sizes(load(image_folder))) == 25


@pytest.fixture
def split_folder(tmp_path):
    """Pictures whose red tells their split."""
    for red, (split, count) in enumerate((("train", 8), ("val", 4), ("test", 3))):
        for name in ("cat", "dog"):
            fill(tmp_path / split / name, count=count, red=red)
    return tmp_path


def test_given_splits_are_used(split_folder, capsys):
    splits = load(split_folder)
    assert splits.classes == ("cat", "dog")
    assert sizes(splits) == [16, 8, 6]
    for red, part in enumerate((splits.train, splits.validation, splits.test)):
        assert (part.images[..., 0] == red).all()
        assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "VALIDATION"])
def test_a_split_has_several_names_in_any_case(split_folder, name):
    (split_folder / "val").rename(split_folder / name)
    (split_folder / "train").rename(split_folder / "Training")
    (split_folder / "test").rename(split_folder / "Testing")
    assert sizes(load(split_folder)) == [16, 8, 6]


@pytest.mark.parametrize(
    ("missing", "expected", "said"),
    [
        (["val"], [14, 2, 6], "15% for validation\n"),
        (["test"], [14, 8, 2], "15% for test\n"),
        (["val", "test"], [12, 2, 2], "15% for validation and for test\n"),
    ],
)
def test_splits_that_are_missing_are_cut_from_the_training_images(
    split_folder, capsys, missing, expected, said
):
    for name in missing:  # an empty folder is as good as none
        (split_folder / name).rename(split_folder.with_name(f"{split_folder.name}-{name}"))
        (split_folder / name / "cat").mkdir(parents=True)
    splits = load(split_folder)
    assert sizes(splits) == expected
    assert (splits.train.images[..., 0] == 0).all()
    printed = capsys.readouterr().out
    assert f"cut from the training images: {said}" in printed
    assert f"empty folders, passed over: {len(missing)}" in printed


def test_a_class_that_only_the_training_images_have_is_kept(split_folder):
    fill(split_folder / "train" / "bird", count=2)
    splits = load(split_folder)
    assert splits.classes == ("bird", "cat", "dog")
    assert splits.counts()["test"] == {"bird": 0, "cat": 3, "dog": 3}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("val/bird", r"val has classes that .*train lacks \(bird\), expected some of cat, dog\."),
        ("test/Cat", r"test has classes that .*train lacks \(Cat\)"),
        ("validation/cat", "has val and validation, expected one folder of validation images"),
        ("extra", "has test, which looks like a split with sub-folders, beside extra"),
    ],
)
def test_splits_that_do_not_fit_are_refused(split_folder, folder, message):
    fill(split_folder / folder)
    with pytest.raises(DataError, match=message):
        load(split_folder)


def test_splits_without_training_images_are_refused(split_folder):
    (split_folder / "train").rename(split_folder / ".train")
    with pytest.raises(DataError, match=r"test, which looks like a split.*without a folder train"):
        load(split_folder)


def test_a_split_beside_classes_is_refused(image_folder):
    fill(image_folder / "test" / "cats")
    with pytest.raises(DataError, match=r"has test, which looks like a split.*beside cats, dogs"):
        load(image_folder)


def test_a_split_without_classes_is_refused(split_folder):
    (split_folder / "test").rename(split_folder / ".test")
    fill(split_folder / "test")
    with pytest.raises(DataError, match="test has no sub-folders with files, expected one a class"):
        load(split_folder)


def test_classes_may_be_named_as_splits_are(tmp_path):
    names = ("bus", "test", "train")
    for name in names:
        fill(tmp_path / name)
    splits = load(tmp_path)
    assert splits.classes == names
    assert sum(sizes(splits)) == 30


@pytest.mark.parametrize("layout", ["image_folder", "split_folder"])
def test_hidden_and_system_files_are_passed_over_at_every_level(request, capsys, layout):
    folder = request.getfixturevalue(layout)
    expected = load(folder)
    for below in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".Trash"):
            fill(below / name, count=1)
        for name in ("Thumbs.db", "thumbs.db", ".DS_Store", "._0.png", "desktop.ini"):
            (below / name).write_bytes(b"no image")
    capsys.readouterr()
    splits = load(folder)
    assert splits.classes == expected.classes
    assert splits.listing == expected.listing
    assert "unreadable" not in capsys.readouterr().out


def test_empty_folders_are_passed_over_and_said(image_folder, capsys):
    (image_folder / "birds" / "white").mkdir(parents=True)
    (image_folder / "birds" / ".DS_Store").touch()
    (image_folder / "labels.csv").touch()
    assert load(image_folder).classes == ("cats", "dogs")
    printed = capsys.readouterr().out
    assert f"empty folders, passed over: 1 ({image_folder}/birds)\n" in printed
    assert f"files beside the class folders, not used: 1 ({image_folder}/labels.csv)" in printed


def test_a_class_without_a_readable_image_is_refused_by_name(image_folder):
    (image_folder / "birds").mkdir()
    (image_folder / "birds" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"class birds has no readable image .*notes\.txt"):
        load(image_folder)


def test_a_picture_of_unknown_white_stops_the_run(image_folder):
    path = image_folder / "dogs" / "depth.tiff"
    Image.new("F", (4, 4)).save(path)
    with pytest.raises(DataError, match=rf"{path}: A picture has mode 'F'.*save it as an 8-bit"):
        load(image_folder)


def test_pictures_are_scaled_turned_and_laid_on_white(tmp_path, capsys):
    wide = Image.fromarray(np.full((8, 8), 128 << 8, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # its left side is the top
    top = Image.new("RGB", (8, 8), "white")
    top.paste("black", (0, 0, 4, 8))
    for number in range(10):
        for name, picture in (("wide", wide), ("clear", Image.new("RGBA", (8, 8)))):
            (tmp_path / name).mkdir(exist_ok=True)
            picture.save(tmp_path / name / f"{number}.png")
        (tmp_path / "turned").mkdir(exist_ok=True)
        top.save(tmp_path / "turned" / f"{number}.png", exif=exif)
    train = load(tmp_path).train
    clear, turned, wide = (train.images[train.labels == label] for label in range(3))
    assert (wide == 128).all()
    assert (clear == 255).all()
    assert (turned[:, :4] == 0).all()
    assert (turned[:, 4:] == 255).all()
    assert "pictures with an alpha channel, laid on white: 10" in capsys.readouterr().out


def test_every_file_is_listed_with_its_size_and_class(image_folder):
    listing = load(image_folder).listing
    assert len(listing) == 20
    size = (image_folder / "dogs" / "7.png").stat().st_size
    assert listing["dogs/7.png"] == {"bytes": size, "class": "dogs"}


def test_a_folder_that_cannot_be_read_is_told_with_its_path(image_folder, unprivileged):
    with pytest.raises(DataError, match=f"cannot be read.*Permission denied: '{image_folder}"):
        load(image_folder)


def test_a_folder_too_small_to_be_split_is_refused(tmp_path):
    for name in ("cats", "dogs"):
        fill(tmp_path / name, count=2)
    with pytest.raises(DataError, match=r"too small to be split.*'test': 0"):
        load(tmp_path)


@pytest.mark.parametrize(("classes", "found"), [([], "0 .*none"), (["cats"], r"1 .*\(cats\)")])
def test_a_folder_without_two_classes_is_refused(tmp_path, classes, found):
    for name in classes:
        fill(tmp_path / name)
    with pytest.raises(DataError, match=f"has {found}.*expected one sub-folder of images"):
        load(tmp_path)
