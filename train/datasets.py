"""Load a data set by name, resized, as three splits."""

import gzip
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from train.cifar import load_cifar
from train.config import Config
from train.data import (
    PARTS,
    Given,
    Images,
    LabelledImages,
    Splits,
    stratified_split,
    stratified_subset,
)
from train.decoding import resize
from train.devices import is_first_process
from train.errors import DataError
from train.folders import find_folder
from train.pictures import Found, Listing, check_pictures, read_pictures
from train.presets import PRESETS, find_preset

__all__ = ["load_dataset"]

CUT_SHARE = 0.15  # of the training images, for each part that is missing
IDX_UINT8 = 0x08
FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_dataset(config: Config, known: Listing = MappingProxyType({})) -> Splits:
    """Loads what `config.dataset` names at `config.image_size`.

    Validation and test images that the data set does not give are cut from its training images, in
    the same proportion of each class. What is cut depends only on `config.seed`. Of what is left to
    train on, `config.train_images` are kept.

    Args:
      config: the settings, resolved.
      known: files that could be read before, which streaming does not check again.

    Raises:
      DataError: if the data set is missing (the message says how to get it), damaged, or so small
        that a part would be empty, or there are not as many training images as are asked for.
      DownloadError: if it could not be downloaded.
    """
    try:
        given = _given(config, known)
    except OSError as error:
        raise DataError(f"The data set {config.dataset} cannot be read: {error}.") from error
    parts = {**given.parts, **_cut_missing(given.parts, config.seed)}
    sizes = {part: len(parts[part]) for part in PARTS}
    if not all(sizes.values()):
        raise DataError(f"{config.dataset} is too small to be split in three: {sizes}.")
    parts["train"] = _wanted(config, parts["train"])
    return Splits(**parts, classes=given.classes, listing=given.listing)


def _given(config: Config, known: Listing) -> Given:
    size = config.image_size
    assert size is not None  # resolved before
    if config.dataset == "elpv":
        return _elpv(size)
    if config.dataset == "folder":
        return _pictures(config, find_folder(_data_dir(config)), known)
    if config.dataset in PRESETS:
        return _pictures(config, find_preset(config.dataset, config.data_dir), known)
    if config.dataset == "fashion_mnist":
        train, test = _fashion_mnist(_data_dir(config))
        return _from_arrays(config, train, test, FASHION_MNIST)
    return _from_arrays(config, *load_cifar(config.dataset, config.data_dir))


def _pictures(config: Config, found: Found, known: Listing) -> Given:
    size, on_bad_image = config.image_size, config.on_bad_image
    assert size is not None  # resolved before
    if config.stream:
        return check_pictures(found, size, on_bad_image, config.workers, known)
    return read_pictures(found, size, on_bad_image)


def _cut_missing(parts: Mapping[str, Images], seed: int) -> dict[str, Images]:
    """The parts that are not given, and what they leave of the training images."""
    missing = [part for part in PARTS if part not in parts]
    if not missing:
        return {}
    if is_first_process():
        print(f"cut from the training images: {CUT_SHARE:.0%} for {' and for '.join(missing)}")
    shares = (1 - CUT_SHARE * len(missing), *[CUT_SHARE] * (len(missing) - 1))
    rows = stratified_split(parts["train"].labels, shares, seed=seed)
    return {
        part: parts["train"][chosen] for part, chosen in zip(("train", *missing), rows, strict=True)
    }


def _wanted(config: Config, images: Images) -> Images:
    """As many of the training images as are asked for."""
    count = config.train_images
    if count is None:
        return images
    classes = len(np.unique(images.labels))
    if not classes <= count <= len(images):
        raise DataError(
            f"train_images={count} of {config.dataset}, expected {classes} (one of each class) to "
            f"{len(images)} (all training images). Leave it out to train on all."
        )
    if is_first_process():
        print(f"trained on {count} of {len(images)} training images, the same share of each class")
    return images[stratified_subset(images.labels, count, seed=config.seed)]


def _from_arrays(
    config: Config, train: LabelledImages, test: LabelledImages, classes: tuple[str, ...]
) -> Given:
    """A data set that has its own test images, resized."""
    listing = {}
    for name, part in (("training images", train), ("test images", test)):
        if (
            len(part.images) != len(part)
            or not ((part.labels >= 0) & (part.labels < len(classes))).all()
        ):
            raise DataError(
                f"{config.dataset} has {len(part.images)} images and {len(part)} labels from "
                f"{part.labels.min()} to {part.labels.max()}, expected as many of both and labels "
                f"from 0 to {len(classes) - 1}. Get the published files again."
            )
        digest = hashlib.sha256(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.labels).data)
        listing[name] = {"images": len(part), "sha256": digest.hexdigest()}
    assert config.image_size is not None  # resolved before
    parts = {
        part: _resized(images, config.image_size)
        for part, images in (("train", train), ("test", test))
    }
    return Given(parts, classes, listing)


def _elpv(size: int) -> Given:
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
    images = np.stack([_read_grey(folder / path, size) for path in paths])
    labels = (np.array(probabilities, float) > 0.5).astype(np.int32)
    classes = ("functional", "defective")
    listing = {
        path: {"bytes": (folder / path).stat().st_size, "class": classes[label]}
        for path, label in zip(paths, labels, strict=True)
    }
    return Given({"train": LabelledImages(images, labels)}, classes, listing)


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


def _read_grey(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return resize(image.convert("L"), size)


def _resized(images: LabelledImages, size: int) -> LabelledImages:
    if images.images.shape[1:3] == (size, size):
        return images
    grey = images.images.shape[-1] == 1
    pictures: Iterable[np.ndarray] = images.images[..., 0] if grey else images.images
    resized = np.stack([resize(Image.fromarray(picture), size) for picture in pictures])
    return LabelledImages(resized, images.labels)


def _data_dir(config: Config) -> Path:
    if config.data_dir is None or not config.data_dir.is_dir():
        raise DataError(
            f"The data set {config.dataset} is read from a folder, but --data-dir is "
            f"{config.data_dir}. Give a folder that exists."
        )
    return config.data_dir
