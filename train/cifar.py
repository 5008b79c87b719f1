"""CIFAR-10 and CIFAR-100, downloaded or from disk.

"Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009). The published archives
hold pickles; they are read by an unpickler that can make arrays of bytes and plain containers, and
nothing else.
"""

import dataclasses
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from importers import download
from train.data import LabelledImages
from train.errors import DataError

__all__ = ["ARCHIVES", "Archive", "load_cifar"]

COLOURS, SIDE = 3, 32
REMEDY = "Get the published archive again."


@dataclasses.dataclass(frozen=True)
class Archive:
    """One published archive.

    Attributes:
      url: where its author publishes it.
      md5: its digest, as published.
      folder: what it unpacks to.
      train: its files of training images.
      test: its file of test images.
      labels: key of the labels in these files.
      meta: file and key of the class names.
    """

    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: tuple[str, str]


ARCHIVES: Mapping[str, Archive] = MappingProxyType(
    {
        "cifar10": Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            labels="labels",
            meta=("batches.meta", "label_names"),
        ),
        "cifar100": Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            labels="fine_labels",
            meta=("meta", "fine_label_names"),
        ),
    }
)


def load_cifar(
    name: str, data_dir: Path | None
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    """Returns training images, test images and class names.

    Args:
      name: `cifar10` or `cifar100`.
      data_dir: the archive, the folder that holds it or its unpacked folder, or that folder
        itself; None to download the archive.

    Raises:
      DataError: if `data_dir` has neither, or a file is damaged.
      DownloadError: if the archive cannot be downloaded.
    """
    archive = ARCHIVES[name]
    read = _reader(archive, data_dir)
    parts = [_images(read(file), archive) for file in archive.train]
    train = LabelledImages(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    meta, names = archive.meta
    return train, _images(read(archive.test), archive), tuple(_value(read(meta), names))


def _reader(archive: Archive, data_dir: Path | None) -> Callable[[str], Any]:
    """A function that reads one file of the archive, wherever that is."""
    if data_dir is not None:
        for folder in (data_dir, data_dir / archive.folder):
            if (folder / archive.test).is_file():
                return lambda file: _unpickle((folder / file).read_bytes(), str(folder / file))
        packed = data_dir
        if not data_dir.is_file():
            packed = data_dir / archive.url.rpartition("/")[2]
        if not packed.is_file():
            raise DataError(
                f"{data_dir} has neither {packed.name} nor the folder {archive.folder} in it. "
                f"Leave --data-dir out to download it from {archive.url}."
            )
    else:
        packed = download(
            archive.url,
            digest=f"md5:{archive.md5}",
            remedy="Where the network is closed, get the file elsewhere and give its folder with "
            "--data-dir FOLDER.",
        )
    return lambda file: _unpickle(_member(packed, f"{archive.folder}/{file}"), f"{packed}:{file}")


def _member(packed: Path, name: str) -> bytes:
    """One file's bytes; nothing is unpacked to disk."""
    try:
        with tarfile.open(packed) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()
    except (KeyError, AssertionError, tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{packed}: expected a file {name} in the archive ({error}).") from error


def _images(batch: Mapping[str, Any], archive: Archive) -> LabelledImages:
    data, labels = _value(batch, "data"), _value(batch, archive.labels)
    if not isinstance(data, np.ndarray) or data.shape[1:] != (COLOURS * SIDE * SIDE,):
        raise DataError(
            f"A file of CIFAR has images as {type(data).__name__} of shape "
            f"{getattr(data, 'shape', 'unknown')}, expected [N, {COLOURS * SIDE * SIDE}]. {REMEDY}"
        )
    numbers = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not numbers or len(labels) != len(data):
        raise DataError(
            "A file of CIFAR has wrong labels, expected one whole number for each of its "
            f"{len(data)} images. {REMEDY}"
        )
    # Stored colour by colour.
    images = data.reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images), np.array(labels, np.int32))


def _value(batch: Mapping[str, Any], key: str) -> Any:
    try:
        return batch[key]
    except KeyError:
        raise DataError(
            f"A file of CIFAR has the keys {sorted(map(str, batch))}, expected {key!r} among them. "
            "Its folder may be that of another data set."
        ) from None


class _Dtype:
    """Stands in for `numpy.dtype`, of which images need one only: bytes."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "u1":
            raise DataError(f"the file makes an array of {code!r}, expected bytes. {REMEDY}")

    def __setstate__(self, state: Any) -> None:
        """Ignores the byte order, which bytes do not have."""


class _Array:
    """Stands in for `numpy.ndarray`, so that NumPy unpickles nothing of the file."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise DataError(f"the file makes an array of unknown type. {REMEDY}")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 pickles bytes as, so that Python 2 can read them."""
    return str(text).encode(str(encoding))


ALLOWED = MappingProxyType(
    {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("_codecs", "encode"): _encode,
    }
)

_PythonUnpickler: Any = pickle._Unpickler  # type stubs know only the C one


class _Unpickler(_PythonUnpickler):
    """Makes arrays of bytes and plain containers; refuses every other name.

    Built on the pure-Python implementation: a single instruction with a large memo number can make
    the C one allocate gigabytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"the file asks for {module}.{name}, which images do not need; nothing of it was "
                f"run. {REMEDY}"
            ) from None


def _unpickle(data: bytes, name: str) -> dict[str, Any]:
    try:
        # Written with Python 2, whose strings are bytes.
        loaded = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:
        raise DataError(f"{name}: expected a batch of CIFAR ({error}). {REMEDY}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name}: expected a batch of CIFAR, found {type(loaded).__name__}.")
    return {
        key.decode() if isinstance(key, bytes) else key: (
            value.array if isinstance(value, _Array) else value
        )
        for key, value in loaded.items()
    }
