"""Labelled images, in memory or in files, their splits and their batches.

Shapes: `N` images, `[N, H, W, C]` uint8 with one size for all; labels `[N]` int32.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from train.errors import DataError

__all__ = [
    "PARTS",
    "Given",
    "Images",
    "LabelledImages",
    "PictureFiles",
    "Splits",
    "eval_batches",
    "stratified_split",
    "stratified_subset",
    "train_order",
]

PARTS = ("train", "validation", "test")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images and their labels; a pytree of NumPy or JAX arrays.

    Attributes:
      images: uint8 `[N, H, W, C]`; C is 1 for grey images, which a network sees as three equal
        channels.
      labels: int32 `[N]`.
    """

    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray | jax.Array) -> "LabelledImages":
        return LabelledImages(self.images[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """Pictures that are read when they are needed, and their labels.

    Attributes:
      paths: of the files, objects `[N]`.
      labels: int32 `[N]`.
      size: pixels a side, to which they are resized.
      workers: processes that read them; 0: threads of this process.
    """

    paths: np.ndarray
    labels: np.ndarray
    size: int
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> "PictureFiles":
        return dataclasses.replace(self, paths=self.paths[rows], labels=self.labels[rows])


Images = LabelledImages | PictureFiles


@dataclasses.dataclass(frozen=True)
class Given:
    """A data set as its files divide it.

    Attributes:
      parts: `train`, and `validation` and `test` where the files give them.
      classes: names in the order of the labels.
      listing: what the images were read from, in JSON values: of each file the bytes and the class;
        of a data set in large arrays, of each part the number of images and their digest.
    """

    parts: Mapping[str, Images]
    classes: tuple[str, ...]
    listing: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Splits:
    """One data set in three parts.

    Attributes:
      train: training images.
      validation: images by which the best epoch is chosen.
      test: images that are classified at the end.
      classes: names in the order of the labels.
      listing: as of `Given`.
    """

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    listing: Mapping[str, Mapping[str, Any]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images of each class in each part."""
        return {
            part: dict(
                zip(
                    self.classes,
                    np.bincount(getattr(self, part).labels, minlength=len(self.classes)).tolist(),
                    strict=True,
                )
            )
            for part in PARTS
        }


def stratified_split(
    labels: np.ndarray, shares: tuple[float, ...], *, seed: int
) -> tuple[np.ndarray, ...]:
    """Splits at random so that every part has each class in the same proportion.

    Args:
      labels: int `[N]`.
      shares: of each part but the last, which gets the rest.
      seed: the same seed gives the same split.

    Returns:
      Sorted row numbers of each part, `len(shares) + 1` arrays.
    """
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, chosen in zip(parts, np.split(rows, cuts), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def stratified_subset(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Draws rows so that each class has the same share of them as of all, and at least one row.

    A smaller count draws a part of what a larger one draws: all rows are put in one order, and its
    first rows are taken. The order is that of Webster's apportionment, after one row of each class.

    Args:
      labels: int `[N]`.
      count: at least the number of classes, at most N.
      seed: the same seed gives the same order.

    Returns:
      Sorted row numbers, `[count]`.
    """
    generator = np.random.default_rng((seed, 1))  # independent of the split's
    places = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        places[rows[0]] = 0
    return np.sort(np.argsort(places, kind="stable")[:count])


def train_order(key: jax.Array, epoch: int, size: int, batch_size: int) -> np.ndarray:
    """The rows of every batch of one epoch, `[steps, batch_size]`, without a last short batch.

    Depends only on the key and the epoch, so a resumed run sees the batches it would have seen.

    Raises:
      DataError: if there are fewer images than a batch holds.
    """
    if size < batch_size:
        raise DataError(
            f"There are {size} training images, fewer than batch_size={batch_size}. Lower it."
        )
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), size))
    steps = size // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def eval_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Covers all rows once, as `(rows, real)`, each `[batch_size]`; the last batch is padded.

    `real` is False where a row only fills up the batch.
    """
    for start in range(0, size, batch_size):
        rows = np.arange(start, start + batch_size)
        yield np.minimum(rows, size - 1).astype(np.int32), rows < size
