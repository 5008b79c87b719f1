"""The images of each batch: rows of those on the devices, or read from files in time."""

import contextlib
import functools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from train.ahead import work_ahead
from train.data import Images, LabelledImages
from train.decoding import read_picture
from train.devices import place
from train.errors import DataError

__all__ = ["batches", "pixels_of"]

BLOCK = 64  # pictures that are read at a time, where they make no batch


def batches(
    images: Images, order: np.ndarray, sharding: NamedSharding
) -> Generator[tuple[jax.Array | None, LabelledImages], None, None]:
    """Yields what a step takes of each batch, as `(rows, data)`.

    Of images on the devices it is the rows and all images; of files, None and the images of the
    batch, uint8 `[B, H, W, C]`. A host reads only the pictures that its own devices work on, while
    the devices work on the batches before. Close the iterator if it may be left before its end.

    Args:
      images: of which the batches are.
      order: the rows of each batch, `[steps, B]`.
      sharding: of a batch.

    Raises:
      DataError: if a picture cannot be read, though it could at the start.
    """
    if isinstance(images, LabelledImages):
        for rows in order:
            yield place(rows, sharding), images
        return
    own = _own_places(order.shape[1], sharding)
    read = functools.partial(_read_all, size=images.size)
    paths = [images.paths[rows[own]] for rows in order]
    with contextlib.closing(work_ahead(read, paths, images.workers)) as ahead:
        for rows, pixels in zip(order, ahead, strict=True):
            batch = LabelledImages(pixels, images.labels[rows[own]])
            yield None, _place_own(batch, own, len(rows), sharding)


def pixels_of(images: Images, block: int = BLOCK) -> np.ndarray | Iterator[np.ndarray]:
    """Returns all pixels of images in memory, or those of files in blocks, uint8 `[N, H, W, C]`.

    Args:
      images: in memory or in files.
      block: pictures that are read at a time.

    Raises:
      DataError: if a picture cannot be read, though it could at the start.
    """
    if isinstance(images, LabelledImages):
        return images.images
    blocks = [images.paths[start : start + block] for start in range(0, len(images), block)]
    return work_ahead(functools.partial(_read_all, size=images.size), blocks, images.workers)


def _read_all(paths: Sequence[Path], size: int) -> np.ndarray:
    """The pixels of pictures that could be read before, uint8 `[N, size, size, 3]`."""
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    for number, path in enumerate(paths):
        read = read_picture(path, size)
        if read.pixels is None:
            raise DataError(
                f"{path}: could be read at the start and cannot now "
                f"({read.unreadable or read.refused}). Put the picture back, and go on with "
                "--resume."
            )
        pixels[number] = read.pixels
    return pixels


def _own_places(size: int, sharding: NamedSharding) -> np.ndarray:
    """The places in a batch of what the devices of this process work on, in order."""
    held = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in held if index]))


def _place_own(tree: Any, own: np.ndarray, size: int, sharding: NamedSharding) -> Any:
    """Places arrays of a batch, of which this process has the values at its own places."""
    if len(own) == size:
        return place(tree, sharding)

    def place_one(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return array[np.searchsorted(own, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return jax.tree.map(place_one, tree)
