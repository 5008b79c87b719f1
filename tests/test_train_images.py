"""Training on a part of the images: which ones, and what stays as it is."""

import dataclasses
import json

import numpy as np
import pytest
import small_inputs

from train import statistics
from train.batches import pixels_of
from train.compare.folder import open_folder
from train.compare.resolve import resolve as resolve_comparison
from train.compare.settings import Settings
from train.config import Config
from train.datasets import load_dataset
from train.errors import ConfigError, DataError
from train.run_folder import open_run_folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Of each class 14 to train on, 3 for validation and 3 to test."""
    return small_inputs.save_photographs(tmp_path_factory.mktemp("photographs"), side=16)


@pytest.fixture
def config(photographs, tmp_path):
    return Config(
        dataset="folder",
        data_dir=photographs,
        image_size=8,
        epochs=1,
        train_images=8,
        out=tmp_path,
        name="run",
    )


def rows_in(images, others):
    """The places of some images among others, which are all different."""
    known = {pixels.tobytes(): row for row, pixels in enumerate(others)}
    return {known[pixels.tobytes()] for pixels in images}


def test_a_part_of_the_training_images_is_trained_on_and_the_rest_stays(config, capsys):
    whole = load_dataset(dataclasses.replace(config, train_images=None))
    assert "trained on" not in capsys.readouterr().out
    part = load_dataset(config)
    assert "trained on 8 of 28 training images" in capsys.readouterr().out
    assert part.counts()["train"] == {"dark": 4, "light": 4}
    for name in ("validation", "test"):
        np.testing.assert_array_equal(getattr(part, name).images, getattr(whole, name).images)
        np.testing.assert_array_equal(getattr(part, name).labels, getattr(whole, name).labels)
    rows = rows_in(part.train.images, whole.train.images)
    larger = load_dataset(dataclasses.replace(config, train_images=15))
    assert rows < rows_in(larger.train.images, whole.train.images)


def test_the_same_images_are_streamed(config):
    images = load_dataset(config).train
    files = load_dataset(dataclasses.replace(config, stream=True)).train
    np.testing.assert_array_equal(files.labels, images.labels)
    np.testing.assert_array_equal(np.concatenate(list(pixels_of(files))), images.images)


@pytest.mark.parametrize("count", [1, 29])
def test_too_few_for_the_classes_and_more_than_there_are_is_refused(config, count):
    with pytest.raises(DataError, match=rf"train_images={count} of folder, expected 2 .* to 28 "):
        load_dataset(dataclasses.replace(config, train_images=count))


def test_a_run_is_resumed_with_the_same_number_only(config):
    with open_run_folder(config, load_dataset(config)):
        pass
    for count in (None, 9):
        changed = dataclasses.replace(config, train_images=count, resume=True)
        with pytest.raises(ConfigError, match=r"was started with train_images=8\. Resume it with"):
            open_run_folder(changed, load_dataset(changed)).__enter__()
    same = dataclasses.replace(config, resume=True)
    with open_run_folder(same, load_dataset(same)) as folder:
        assert json.loads((folder / "data.json").read_text())["counts"]["train"]["dark"] == 4


def test_a_run_of_an_earlier_version_goes_on_with_all_images(config):
    config = dataclasses.replace(config, train_images=None)
    with open_run_folder(config, load_dataset(config)) as folder:
        pass
    settings = json.loads((folder / "config.json").read_text())
    del settings["train_images"]
    (folder / "config.json").write_text(json.dumps(settings))
    config = dataclasses.replace(config, resume=True)
    with open_run_folder(config, load_dataset(config)):
        pass
    fewer = dataclasses.replace(config, train_images=8)
    with pytest.raises(ConfigError, match="was started with train_images=None"):
        open_run_folder(fewer, load_dataset(fewer)).__enter__()


def test_a_comparison_is_continued_with_the_same_number_only(config):
    own = {name: getattr(config, name) for name in ("dataset", "data_dir", "image_size", "out")}
    settings = resolve_comparison(Settings(**own, train_images=8, name="comparison"))
    open_folder(settings, load_dataset(settings))
    fewer = dataclasses.replace(settings, train_images=7)
    with pytest.raises(ConfigError, match=r"was started with train_images=8\. Continue it with"):
        open_folder(fewer, load_dataset(fewer))


def test_statistics_are_those_of_the_images_that_are_trained_on(config, capsys):
    arguments = ["--data-dir", str(config.data_dir), "--image-size", "8", "--train-images", "8"]
    assert statistics.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "8 training images of 8 pixels a side" in printed
    assert f"--normalization {statistics.measure(load_dataset(config).train.images)}" in printed
