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
from train.data import DataError, LabelledImages

__all__ = ["ARCHIVES", "Archive", "load_cifar"]


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
      data_dir: the folder that holds the archive or its unpacked folder, or that folder itself;
        None to download the archive.

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


def _images(batch: Any, archive: Archive) -> LabelledImages:
    data = np.asarray(_value(batch, "data"))
    labels = np.asarray(_value(batch, archive.labels), np.int32)
    # Stored as [N, 3 * 32 * 32], colour by colour.
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images, np.uint8), labels)


def _value(batch: Mapping[str, Any], key: str) -> Any:
    try:
        return batch[key]
    except KeyError:
        raise DataError(
            f"A file of CIFAR has the keys {sorted(map(str, batch))}, expected {key!r} among them. "
            "Give the folder of the data set that is asked for."
        ) from None


class _Unpickler(pickle.Unpickler):
    """Makes arrays of numbers and plain containers; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype", "scalar") and module.startswith("numpy"):
            return {
                "_reconstruct": _reconstruct,
                "ndarray": np.ndarray,
                "dtype": _plain_dtype,
                "scalar": lambda dtype, data: np.frombuffer(data, dtype)[0],
            }[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode(str(encoding))
        raise DataError(
            f"the file asks for {module}.{name}, which images do not need; nothing of it was run. "
            "Get the published archive."
        )


def _reconstruct(kind: Any, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, whose contents the pickle sets next."""
    if kind is not np.ndarray or shape != (0,):
        raise DataError("the file makes something else than an array of numbers.")
    return np.ndarray.__new__(np.ndarray, shape, "b")


def _plain_dtype(code: str, *_: Any) -> np.dtype:
    dtype = np.dtype(code)
    if dtype.hasobject:
        raise DataError("the file makes an array of objects.")
    return dtype


def _unpickle(data: bytes, name: str) -> dict[str, Any]:
    try:
        # The authors wrote them with Python 2, whose strings are bytes.
        loaded = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:
        raise DataError(f"{name}: expected a batch of CIFAR ({error}). Get it again.") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name}: expected a batch of CIFAR, found {type(loaded).__name__}.")
    return {key.decode() if isinstance(key, bytes) else key: loaded[key] for key in loaded}
