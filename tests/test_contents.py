"""What a run tells and keeps of its data set, and what it notices when it is resumed."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from train.config import Config
from train.contents import show_contents
from train.data import LabelledImages, Splits
from train.datasets import load_dataset
from train.errors import ConfigError
from train.run_folder import open_run_folder


def shown(splits):
    output = io.StringIO()
    show_contents(splits, Console(file=output, width=100))
    return output.getvalue()


def images_of(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return LabelledImages(np.zeros((len(labels), 4, 4, 3), np.uint8), labels)


def test_every_class_is_shown_with_its_images_in_each_part():
    parts = images_of([7, 5]), images_of([2, 1]), images_of([3, 0])
    lines = shown(Splits(*parts, classes=("cat", "[red]dog"), listing={})).splitlines()
    words = [line.replace("│", " ").split() for line in lines]
    assert ["cat", "7", "2", "3"] in words
    assert ["[red]dog", "5", "1", "0"] in words
    assert ["all", "12", "3", "3"] in words
    assert lines[-1] == "classes without test images: 1 ([red]dog)"


def test_many_classes_are_shown_in_part():
    part = images_of([1] * 100)
    names = tuple(f"class {number}" for number in range(100))
    text = shown(Splits(part, part, part, classes=names, listing={}))
    assert "class 19 " in text
    assert "class 20 " not in text
    assert "80 more, see data.json" in text


@pytest.fixture
def config(tmp_path):
    """Settings of a run on two folders of ten pictures."""
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(tmp_path / "pictures" / name / f"{number}.png")
    return Config(
        dataset="folder", data_dir=tmp_path / "pictures", image_size=8, out=tmp_path / "runs"
    )


def start(config):
    with open_run_folder(config, load_dataset(config)) as folder:
        return folder


def resume(config):
    return start(dataclasses.replace(config, resume=True))


def test_a_run_folder_keeps_classes_counts_and_files(config):
    record = json.loads((start(config) / "data.json").read_text())
    assert record["classes"] == ["cat", "dog"]
    assert record["counts"]["train"] == {"cat": 7, "dog": 7}
    size = (config.data_dir / "cat" / "3.png").stat().st_size
    assert record["files"]["cat/3.png"] == {"bytes": size, "class": "cat"}
    assert len(record["files"]) == 20


def test_the_same_data_resumes_a_run(config, capsys):
    folder = start(config)
    (config.data_dir / "cat" / ".DS_Store").touch()
    capsys.readouterr()
    assert resume(config) == folder
    assert "data.json" not in capsys.readouterr().out


def add(pictures):
    Image.new("L", (8, 8)).save(pictures / "dog" / "new.png")


def remove(pictures):
    for number in range(5):
        (pictures / "dog" / f"{number}.png").unlink()


def change(pictures):
    Image.new("L", (80, 80)).save(pictures / "cat" / "3.png")


def add_a_class(pictures):
    (pictures / "bird").mkdir()
    Image.new("L", (8, 8)).save(pictures / "bird" / "0.png")


def rename_a_class(pictures):
    (pictures / "dog").rename(pictures / "wolf")


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (add, r"started: files added: 1 \(dog/new\.png\)\. Resume it with the same data"),
        (remove, r"files removed: 5 \(dog/0\.png, dog/1\.png, dog/2\.png, 2 more\)\."),
        (change, r"started: files changed: 1 \(cat/3\.png\)\."),
        (add_a_class, r"classes added: 1 \(bird\); files added: 1 \(bird/0\.png\)\."),
        (rename_a_class, r"classes added: 1 \(wolf\); classes removed: 1 \(dog\); files added: 10"),
    ],
)
def test_changed_data_cannot_resume_a_run(config, do, message):
    start(config)
    do(config.data_dir)
    with pytest.raises(ConfigError, match=message):
        resume(config)


def test_a_run_folder_without_a_listing_is_resumed_and_gets_one(config, capsys):
    folder = start(config)
    kept = folder / "data.json"
    listing = kept.read_text()
    kept.unlink()
    add(config.data_dir)
    assert resume(config) == folder
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "data.json" in line]
    assert line.endswith("is missing, so changes of the data set since the start are not noticed")
    assert kept.read_text() != listing
    remove(config.data_dir)
    with pytest.raises(ConfigError, match="files removed: 5"):
        resume(config)


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": []}'])
def test_a_damaged_listing_is_refused(config, content):
    kept = start(config) / "data.json"
    kept.write_text(content)
    with pytest.raises(ConfigError, match=f"{kept} is damaged"):
        resume(config)


def test_a_run_folder_where_a_file_stands_is_refused(config):
    config.out.touch()
    with pytest.raises(ConfigError, match=rf"{config.folder} cannot be used.*another with --out"):
        start(config)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_folder_without_permission_is_refused(config, resumed, tmp_path, request):
    config = dataclasses.replace(config, resume=resumed)
    splits = load_dataset(config)
    request.getfixturevalue("unprivileged")
    match = f"cannot be used.*Permission denied: '{tmp_path}"
    with pytest.raises(ConfigError, match=match), open_run_folder(config, splits):
        pass
