"""Folders of pictures that are read in time: what is found in them, and damage that comes later."""

import contextlib
import dataclasses
import threading
import warnings
from collections import defaultdict

import jax
import numpy as np
import pytest
from PIL import Image

from train import statistics
from train.batches import batches, pixels_of
from train.config import Config
from train.contents import known_files
from train.data import PARTS, eval_batches, train_order
from train.datasets import load_dataset
from train.devices import find_devices
from train.errors import ConfigError, DataError
from train.pictures import Found, check_pictures, read_pictures
from train.run_folder import open_run_folder

CUT_OFF_TAGS = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures in each of two classes, of which some are special, and two that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for number in range(10):
            pixels = generator.integers(0, 256, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    (folder / "cats" / "2.jpg").write_bytes(b"no picture")
    content = (folder / "dogs" / "0.jpg").read_bytes()
    (folder / "dogs" / "0.jpg").write_bytes(content[:-200])
    Image.new("RGB", (20, 20), "red").save(folder / "dogs" / "tags.jpg", exif=CUT_OFF_TAGS)
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(folder / "dogs" / "alpha.png")
    return folder


def config_of(folder, stream=True, **more):
    return Config(
        dataset="folder", data_dir=folder, image_size=8, batch_size=4, stream=stream, **more
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_pictures_are_found_and_told_of_as_in_memory(folder, capfd, workers):
    splits, printed = {}, {}
    for stream in (False, True):
        splits[stream] = load_dataset(config_of(folder, stream, workers=workers * stream))
        shown = capfd.readouterr()
        lines = shown.out.splitlines()
        printed[stream] = sorted(line for line in lines if "read once" not in line)
        assert "EXIF" not in shown.err  # it does not name the file
    assert printed[True] == printed[False]
    (skipped,) = [line for line in printed[True] if line.startswith("unreadable files, skipped: 2")]
    assert "cats/2.jpg" in skipped
    assert any("in spite of a warning (Corrupt EXIF data" in line for line in printed[True])
    assert any("alpha channel, laid on white: 1" in line for line in printed[True])
    assert splits[True].listing == splits[False].listing
    for part in PARTS:
        files, images = getattr(splits[True], part), getattr(splits[False], part)
        np.testing.assert_array_equal(files.labels, images.labels)
        np.testing.assert_array_equal(np.concatenate(list(pixels_of(files))), images.images)


def test_a_file_that_is_listed_twice_counts_twice(folder):
    cats = {"cats": sorted((folder / "cats").glob("[0-3].jpg"))}  # of which 2.jpg is no picture
    members = {"train": {"cats": cats["cats"] * 2, "dogs": [folder / "dogs" / "1.jpg"]}}
    found = Found(folder, {**members, "test": cats}, defaultdict(list))
    images = read_pictures(found, 8, "skip").parts
    files = check_pictures(found, 8, "skip", 0, {}).parts
    for part, count in (("train", 7), ("test", 3)):
        pixels = np.concatenate(list(pixels_of(files[part])))
        assert len(pixels) == len(files[part]) == count
        np.testing.assert_array_equal(pixels, images[part].images)
        np.testing.assert_array_equal(files[part].labels, images[part].labels)


def test_warnings_of_others_are_shown_while_pictures_are_read(folder):
    splits = load_dataset(config_of(folder))
    blocks = pixels_of(splits.train)
    next(blocks)
    with pytest.warns(UserWarning, match="of another kind"):
        warnings.warn("of another kind", stacklevel=1)
    assert list(blocks) == []
    with pytest.raises(UserWarning):  # as pytest is told, so nothing of it is left
        warnings.warn("afterwards", stacklevel=1)


def test_a_damaged_picture_stops_the_run_at_the_start_if_asked(folder):
    with pytest.raises(DataError, match=r"2\.jpg: cannot be read .*pass --on-bad-image skip"):
        load_dataset(config_of(folder, on_bad_image="stop"))


def test_a_class_without_readable_pictures_is_refused(tmp_path):
    for name, content in (("cats", None), ("dogs", b"no picture")):
        (tmp_path / name).mkdir()
        for number in range(9):
            path = tmp_path / name / f"{number}.png"
            Image.new("L", (8, 8)).save(path)
            if content:
                path.write_bytes(content)
    with pytest.raises(DataError, match=r"class dogs has no readable image among 9 files"):
        load_dataset(config_of(tmp_path))


def test_batches_are_the_rows_of_the_order_on_the_devices_that_work_on_them(folder, key):
    config = config_of(folder)
    devices = find_devices(config)
    files = load_dataset(config).train
    images = load_dataset(config_of(folder, stream=False)).train
    order = train_order(key, 1, len(files), 4)
    with contextlib.closing(batches(files, order, devices.rows)) as read:
        for rows, (none, batch) in zip(order, read, strict=True):
            assert none is None
            assert batch.images.sharding.is_equivalent_to(devices.rows, 4)
            np.testing.assert_array_equal(batch.images, images.images[rows])
            np.testing.assert_array_equal(batch.labels, images.labels[rows])


def copied(folder, to):
    for path in folder.glob("*/*"):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        (to / path.parent.name / path.name).write_bytes(path.read_bytes())
    return to


def test_only_a_changed_file_is_checked_again_on_resuming_and_is_refused(folder, tmp_path, capsys):
    pictures = copied(folder, tmp_path / "pictures")
    config = config_of(pictures, out=tmp_path / "runs")
    with open_run_folder(config, load_dataset(config, known_files(config))):
        pass
    (pictures / "cats" / "2.jpg").unlink()  # was no picture, and is in no listing
    (pictures / "dogs" / "0.jpg").unlink()
    config = dataclasses.replace(config, resume=True)
    capsys.readouterr()
    with open_run_folder(config, load_dataset(config, known_files(config))):
        assert "read once" not in capsys.readouterr().out
    Image.new("RGB", (90, 90)).save(pictures / "cats" / "3.jpg")
    splits = load_dataset(config, known_files(config))
    assert "are damaged: 1\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"files changed: 1 \(cats/3\.jpg\)"):
        open_run_folder(config, splits).__enter__()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_picture_that_is_damaged_later_is_named_in_its_batch(folder, tmp_path, workers):
    config = config_of(copied(folder, tmp_path), workers=workers)
    files = load_dataset(config).validation
    order = np.stack([rows for rows, _ in eval_batches(len(files), 2)])
    damaged = files.paths[order[-1, -1]]
    damaged.write_bytes(damaged.read_bytes()[:100])
    message = rf"{damaged}: could be read at the start and cannot now .* go on with --resume"
    with contextlib.closing(batches(files, order, find_devices(config).rows)) as read:
        for _ in order[1:]:
            next(read)
        with pytest.raises(DataError, match=message):
            next(read)


def test_the_command_prints_the_same_statistics(folder, capsys):
    printed = []
    for more in ([], ["--stream"]):
        arguments = ["--data-dir", str(folder), "--image-size", "8", *more]
        assert statistics.main(arguments) == 0
        printed.append(capsys.readouterr().out.splitlines()[-4:])
    assert printed[0] == printed[1]
    assert printed[0][-1].startswith("--normalization 0.")


def test_blocks_measure_as_one_array():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3)).astype(np.uint8)
    blocks = iter([images[:3], images[3:]])
    assert statistics.measure(blocks) == statistics.measure(images)


def test_an_iterator_that_is_left_early_leaves_no_thread(folder):
    files = load_dataset(config_of(folder)).train
    rows = find_devices(config_of(folder)).rows
    order = np.zeros((500, 4), np.int32)
    with contextlib.closing(batches(files, order, rows)) as read:
        jax.block_until_ready(next(read)[1])
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(10)
            assert not thread.is_alive()
