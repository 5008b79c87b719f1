import dataclasses
import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from elpv_dataset.utils import load_dataset as load_elpv
from PIL import Image

from importers.errors import DownloadError
from train.cifar import ARCHIVES, load_cifar
from train.config import Config
from train.data import DataError
from train.datasets import load_dataset


def test_elpv_is_the_package_s_own_data_split_by_class():
    splits = load_dataset(Config(image_size=16))
    _, probabilities, _ = load_elpv()
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == len(probabilities) == 2624
    assert sum(part.labels.sum() for part in parts) == (probabilities > 0.5).sum() == 821
    for part in parts:
        assert part.images.shape[1:] == (16, 16, 1)
        assert part.images.dtype == np.uint8
        assert part.labels.mean() == pytest.approx(821 / 2624, abs=0.002)
    assert splits.classes == ("functional", "defective")


@pytest.fixture
def image_folder(tmp_path):
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (20, 30), (label * 255, number, 0)).save(
                tmp_path / name / f"{number}.png"
            )
    (tmp_path / "cats" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "cats" / "empty.jpg").touch()
    return tmp_path


def test_an_image_folder_has_its_classes_sorted_and_bad_files_counted(image_folder, capsys):
    splits = load_dataset(Config(dataset="folder", data_dir=image_folder, image_size=8))
    assert splits.classes == ("cats", "dogs")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20
    np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0] == 255, splits.train.labels == 1)
    assert "skipped 2 unreadable files" in capsys.readouterr().out


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_fashion_mnist_is_read_from_idx_files(fashion_folder):
    splits = load_dataset(Config(dataset="fashion_mnist", data_dir=fashion_folder, image_size=28))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 20)
    assert splits.test.labels.tolist() == [i % 10 for i in range(20)]
    assert splits.train.images.shape == (30, 28, 28, 1)


def test_a_damaged_idx_file_is_refused(fashion_folder):
    path = fashion_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(20)))
    with pytest.raises(DataError, match="expected an idx file"):
        load_dataset(Config(dataset="fashion_mnist", data_dir=fashion_folder, image_size=28))


def cifar_files(name, per_file=20):
    """The files of a small CIFAR, in the published format: Python 2's pickles."""
    archive = ARCHIVES[name]
    generator = np.random.default_rng(0)
    files = {}
    for file in (*archive.train, archive.test):
        data = generator.integers(0, 256, (per_file, 3072)).astype(np.uint8)
        labels = [number % 10 for number in range(per_file)]
        files[file] = pickle.dumps({b"data": data, archive.labels.encode(): labels}, protocol=2)
    file, key = archive.meta
    files[file] = pickle.dumps({key: [f"class {i}" for i in range(10)]}, protocol=2)
    return files


def as_folder(name, files, folder):
    root = folder / ARCHIVES[name].folder
    root.mkdir()
    for file, content in files.items():
        (root / file).write_bytes(content)


def as_archive(name, files, folder):
    with tarfile.open(folder / ARCHIVES[name].url.rpartition("/")[2], "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{ARCHIVES[name].folder}/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("store", [as_folder, as_archive])
@pytest.mark.parametrize("name", ARCHIVES)
def test_cifar_is_read_from_a_folder_and_from_the_archive(tmp_path, name, store):
    files = cifar_files(name)
    store(name, files, tmp_path)
    train, test, classes = load_cifar(name, tmp_path)
    assert len(train) == 20 * len(ARCHIVES[name].train)
    assert len(test) == 20
    assert classes[:2] == ("class 0", "class 1")
    raw = pickle.loads(files[ARCHIVES[name].test])[b"data"]
    np.testing.assert_array_equal(test.images[3, 5, 7], raw[3].reshape(3, 32, 32)[:, 5, 7])


def test_cifar_becomes_three_splits_at_the_size_asked_for(tmp_path):
    as_folder("cifar10", cifar_files("cifar10"), tmp_path)
    splits = load_dataset(Config(dataset="cifar10", data_dir=tmp_path, image_size=16))
    assert splits.train.images.shape == (80, 16, 16, 3)
    assert (len(splits.validation), len(splits.test)) == (20, 20)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: pickle.dumps({b"data": Evil(path)}, protocol=2), r"system.*nothing of it"),
        (lambda path: pickle.dumps({b"data": np.array([None])}, protocol=2), "array of objects"),
        (lambda path: b"damaged", "expected a batch of CIFAR"),
        (lambda path: pickle.dumps([1], protocol=2), "found list"),
    ],
    ids=["code", "objects", "damaged", "list"],
)
def test_hostile_batches_are_refused_and_nothing_is_run(tmp_path, content, message):
    files = cifar_files("cifar10") | {"data_batch_2": content(tmp_path / "ran")}
    as_folder("cifar10", files, tmp_path)
    with pytest.raises(DataError, match=message):
        load_cifar("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_files_of_the_other_cifar_are_told_apart(tmp_path):
    files = cifar_files("cifar10")
    files["data_batch_1"] = cifar_files("cifar100")["train"]
    as_folder("cifar10", files, tmp_path)
    with pytest.raises(DataError, match="expected 'labels'"):
        load_cifar("cifar10", tmp_path)


@pytest.mark.parametrize("dataset", ["folder", "fashion_mnist", "cifar10"])
def test_a_missing_folder_is_told_with_the_flag(tmp_path, dataset):
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset(Config(dataset=dataset, data_dir=tmp_path / "none", image_size=8))


def test_cifar_that_cannot_be_reached_is_told_with_the_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    nowhere = dataclasses.replace(ARCHIVES["cifar10"], url="http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr("train.cifar.ARCHIVES", {"cifar10": nowhere})
    with pytest.raises(DownloadError, match=r"get http://127\.0\.0\.1:9/cifar.*--data-dir FOLDER"):
        load_cifar("cifar10", None)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 sub-folders"):
        load_dataset(Config(dataset="folder", data_dir=tmp_path, image_size=8))
