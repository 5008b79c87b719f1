import dataclasses
import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from importers.errors import DownloadError
from train.cifar import ARCHIVES, load_cifar
from train.config import Config
from train.datasets import load_dataset
from train.errors import DataError


def test_elpv_has_the_published_counts_in_every_split():
    splits = load_dataset(Config(image_size=16))
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 2624
    assert sum(part.labels.sum() for part in parts) == 821
    for part in parts:
        assert part.images.shape[1:] == (16, 16, 1)
        assert part.images.dtype == np.uint8
        assert part.labels.mean() == pytest.approx(821 / 2624, abs=0.002)
    assert splits.classes == ("functional", "defective")
    assert splits.counts()["test"] == {"functional": 270, "defective": 123}
    assert len(splits.listing) == 2624


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


def test_cifar_is_read_from_the_archive_itself(tmp_path):
    as_archive("cifar10", cifar_files("cifar10"), tmp_path)
    (archive,) = tmp_path.iterdir()
    assert len(load_cifar("cifar10", archive)[0]) == 100


@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar_images_come_in_either_memory_order(tmp_path, order):
    data = np.random.default_rng(1).integers(0, 256, (5, 3072)).astype(np.uint8)
    batch = {"data": np.asarray(data, order=order), "labels": [0] * 5}
    as_folder("cifar10", cifar_files("cifar10") | {"test_batch": as_python_2(batch)}, tmp_path)
    _, test, _ = load_cifar("cifar10", tmp_path)
    np.testing.assert_array_equal(test.images[2, 1, 4], data[2].reshape(3, 32, 32)[:, 1, 4])


def as_python_2(batch):
    """As Python 2 wrote it: the module by its old name, and bytes as its plain strings."""
    array, labels = batch["data"], batch["labels"]
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    raw = array.tobytes("F" if fortran else "C")
    return b"".join(
        (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n",
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01",
            b"".join(b"J" + side.to_bytes(4, "little") for side in array.shape) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x88" if fortran else b"\x89",
            b"T" + len(raw).to_bytes(4, "little") + raw + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        )
    )


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((4, 3000), np.uint8), "labels": [0] * 4}, r"expected \[N, 3072\]"),
        ({"data": np.zeros((4, 3072)), "labels": [0] * 4}, "array of 'f8', expected bytes"),
        ({"data": [[0], [0, 1]], "labels": [0] * 2}, "images as list of shape unknown"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, "each of its 4 images"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": ["cat"] * 4}, "one whole number"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [10] * 4}, "labels from 0 to 9"),
    ],
    ids=["width", "floats", "ragged", "count", "names", "range"],
)
def test_batches_that_do_not_fit_are_refused(tmp_path, batch, message):
    files = cifar_files("cifar10") | {"test_batch": pickle.dumps(batch, protocol=2)}
    as_folder("cifar10", files, tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset(Config(dataset="cifar10", data_dir=tmp_path, image_size=32))


class WithState:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def array_with(dtype, shape, raw):
    arguments = (np.ndarray, (0,), b"b")
    return WithState(np.zeros(1).__reduce__()[0], arguments, (1, shape, dtype, False, raw))


# Marks raw bytes as addresses of Python objects, which NumPy's own unpickling would believe.
POINTERS = array_with(
    WithState(np.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, 63)),
    (4,),
    b"\x41" * 32,
)
TOO_LARGE = array_with(np.dtype(np.uint8), (1 << 40, 3072), b"\x41")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: pickle.dumps({b"data": Evil(path)}, protocol=2), r"system.*nothing of it"),
        (lambda path: pickle.dumps({b"data": np.array([None])}, protocol=2), "array of 'O8'"),
        (lambda path: pickle.dumps({b"data": POINTERS}, protocol=2), "array of 'V8'"),
        (lambda path: pickle.dumps({b"data": TOO_LARGE}, protocol=2), "expected a batch of CIFAR"),
        (lambda path: b"\x80\x02}r\xff\xff\xff\x7f.", "keys"),
        (lambda path: b"damaged", "expected a batch of CIFAR"),
        (lambda path: pickle.dumps([1], protocol=2), "found list"),
    ],
    ids=["code", "objects", "pointers", "large", "memo", "damaged", "list"],
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


@pytest.mark.parametrize("dataset", ["folder", "fashion_mnist", "cifar10", "food101"])
def test_a_missing_folder_is_told_with_the_flag(tmp_path, dataset):
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset(Config(dataset=dataset, data_dir=tmp_path / "none", image_size=8))


def test_cifar_that_cannot_be_reached_is_told_with_the_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    nowhere = dataclasses.replace(ARCHIVES["cifar10"], url="http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr("train.cifar.ARCHIVES", {"cifar10": nowhere})
    with pytest.raises(
        DownloadError, match=r"download http://127\.0\.0\.1:9/cifar.*--data-dir FOLDER"
    ):
        load_cifar("cifar10", None)


def test_a_data_set_that_cannot_be_read_is_told_with_its_path(fashion_folder, unprivileged):
    with pytest.raises(DataError, match=f"cannot be read.*Permission denied: '{fashion_folder}"):
        load_dataset(Config(dataset="fashion_mnist", data_dir=fashion_folder, image_size=28))


def test_parts_that_are_missing_are_cut_and_said(fashion_folder, capsys):
    load_dataset(Config(dataset="fashion_mnist", data_dir=fashion_folder, image_size=28))
    assert "cut from the training images: 15% for validation\n" in capsys.readouterr().out


def test_a_data_set_of_arrays_is_listed_with_digests(fashion_folder):
    config = Config(dataset="fashion_mnist", data_dir=fashion_folder, image_size=8)
    first = load_dataset(config).listing
    assert {name: part["images"] for name, part in first.items()} == {
        "training images": 40,
        "test images": 20,
    }
    labels = np.arange(20, dtype=np.uint8) % 10
    write_idx(fashion_folder / "t10k-labels-idx1-ubyte.gz", labels[::-1])
    second = load_dataset(config).listing
    assert second["training images"] == first["training images"]
    assert second["test images"] != first["test images"]
