"""Load a data set by name, resized, as three splits."""

import gzip
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from train.cifar import load_cifar
from train.config import Config
from train.data import LabelledImages, Splits, stratified_split
from train.errors import DataError

__all__ = ["load_dataset"]

VALIDATION_SHARE, TEST_SHARE = 0.15, 0.15
IDX_UINT8 = 0x08
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow raises
FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_dataset(config: Config) -> Splits:
    """Loads what `config.dataset` names at `config.image_size`.

    A data set with test images of its own gives some training images for validation; any other is
    split in three. Splits are stratified and depend only on `config.seed`.

    Raises:
      DataError: if the data set is missing (the message says how to get it), damaged, or so small
        that a part would be empty.
      DownloadError: if it could not be downloaded.
    """
    size = config.image_size
    assert size is not None  # resolved before
    if config.dataset == "elpv":
        splits = _three_ways(*_elpv(size), config.seed)
    elif config.dataset == "folder":
        splits = _three_ways(*_folder(_data_dir(config), size), config.seed)
    else:
        splits = _two_ways(config, size)
    sizes = {part: len(getattr(splits, part)) for part in ("train", "validation", "test")}
    if not all(sizes.values()):
        raise DataError(f"{config.dataset} is too small to be split in three: {sizes}.")
    return splits


def _two_ways(config: Config, size: int) -> Splits:
    """A data set that has its own test images."""
    if config.dataset == "fashion_mnist":
        train, test = _fashion_mnist(_data_dir(config))
        classes = FASHION_MNIST
    else:
        train, test, classes = load_cifar(config.dataset, config.data_dir)
    for part in (train, test):
        if (
            len(part.images) != len(part)
            or not ((part.labels >= 0) & (part.labels < len(classes))).all()
        ):
            raise DataError(
                f"{config.dataset} has {len(part.images)} images and {len(part)} labels from "
                f"{part.labels.min()} to {part.labels.max()}, expected as many of both and labels "
                f"from 0 to {len(classes) - 1}. Get the published files again."
            )
    rows, validation_rows = stratified_split(
        train.labels, (1 - VALIDATION_SHARE,), seed=config.seed
    )
    train, test = _resized(train, size), _resized(test, size)
    return Splits(train[rows], train[validation_rows], test, classes)


def _three_ways(images: LabelledImages, classes: tuple[str, ...], seed: int) -> Splits:
    shares = (1 - VALIDATION_SHARE - TEST_SHARE, VALIDATION_SHARE)
    train, validation, test = stratified_split(images.labels, shares, seed=seed)
    return Splits(images[train], images[validation], images[test], classes)


def _elpv(size: int) -> tuple[LabelledImages, tuple[str, ...]]:
    """Photographs of solar cells (Deitsch et al., 2019), from the package `elpv-dataset`.

    Each has a probability of being defective, of 0, 1/3, 2/3 or 1; above one half counts as
    defective. Only the package's files are read: its code would decode all of them at full size.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("The data set elpv comes with a package: pip install elpv-dataset")
    folder = Path(spec.submodule_search_locations[0], "data")
    lines = (folder / "labels.csv").read_text().splitlines()
    paths, probabilities, _ = zip(*(line.split() for line in lines if line), strict=True)
    images = np.stack([_read(folder / path, size, "L") for path in paths])
    labels = (np.array(probabilities, float) > 0.5).astype(np.int32)
    return LabelledImages(images, labels), ("functional", "defective")


def _folder(folder: Path, size: int) -> tuple[LabelledImages, tuple[str, ...]]:
    """One sub-folder a class. Files that are not images are skipped and counted."""
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    images, labels, unreadable = [], [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if not path.is_file():
                continue
            try:
                images.append(_read(path, size, "RGB"))
                labels.append(label)
            except UNREADABLE:
                unreadable.append(path)
    if unreadable:
        print(f"skipped {len(unreadable)} unreadable files, for example {unreadable[0]}")
    if len(classes) < 2 or not images:
        raise DataError(
            f"{folder} has {len(classes)} sub-folders and {len(images)} images, expected one "
            "sub-folder of images for each of two classes or more."
        )
    return LabelledImages(np.stack(images), np.array(labels, np.int32)), classes


def _fashion_mnist(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """The four idx files of Fashion-MNIST (or MNIST), compressed by gzip."""
    train, test = (
        LabelledImages(
            _read_idx(folder / f"{part}-images-idx3-ubyte.gz")[..., None],
            _read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int32),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _read_idx(path: Path) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    dimensions = data[3] if len(data) > 3 else 0
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(dimensions)]
    body = data[4 + 4 * dimensions :]
    if data[:3] != bytes([0, 0, IDX_UINT8]) or len(body) != np.prod(shape, dtype=object):
        raise DataError(f"{path}: expected an idx file of bytes, found a damaged or other file.")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read(path: Path, size: int, mode: str) -> np.ndarray:
    """Decodes and resizes one image to `[size, size, C]`."""
    with Image.open(path) as image:
        return _resize(image.convert(mode), size)


def _resized(images: LabelledImages, size: int) -> LabelledImages:
    if images.images.shape[1:3] == (size, size):
        return images
    grey = images.images.shape[-1] == 1
    pictures: Iterable[np.ndarray] = images.images[..., 0] if grey else images.images
    resized = np.stack([_resize(Image.fromarray(picture), size) for picture in pictures])
    return LabelledImages(resized, images.labels)


def _resize(image: Image.Image, size: int) -> np.ndarray:
    resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return resized if resized.ndim == 3 else resized[..., None]


def _data_dir(config: Config) -> Path:
    if config.data_dir is None or not config.data_dir.is_dir():
        raise DataError(
            f"The data set {config.dataset} is read from a folder, but --data-dir is "
            f"{config.data_dir}. Give a folder that exists."
        )
    return config.data_dir
