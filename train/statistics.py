"""Mean and standard deviation of the colours of training images.

    python -m train.statistics --data-dir photographs --image-size 64

prints those of a folder, as `python -m train --normalization dataset` computes them.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from tlv_jax.errors import TLVError
from train.batches import pixels_of
from train.config import Config, Dataset, OnBadImage
from train.datasets import load_dataset
from train.errors import DataError

__all__ = ["Statistics", "main", "measure"]

BLOCK = 64  # images that are added up at a time, as integers of 8 bytes


class Statistics(NamedTuple):
    """Of images that are scaled to [0, 1].

    Attributes:
      mean: of each of three colours.
      std: standard deviation of each colour.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        """As `--normalization` takes it."""
        return ",".join(f"{value:.6g}" for value in (*self.mean, *self.std))


def measure(images: np.ndarray | Iterable[np.ndarray]) -> Statistics:
    """Returns the statistics of all pixels, exact but for the last rounding to float64.

    Sums of bytes and of their squares are whole numbers, so one pass is enough.

    Args:
      images: uint8 `[N, H, W, C]`, where C is 3, or 1 for three equal colours; or blocks of them.

    Raises:
      DataError: if a colour has one value everywhere: nothing can be divided by a deviation of 0.
    """
    count, sums = 0, np.zeros((2, 1), np.int64)
    for block in [images] if isinstance(images, np.ndarray) else images:
        for start in range(0, len(block), BLOCK):
            values = block[start : start + BLOCK].reshape(-1, block.shape[-1]).astype(np.int64)
            sums = sums + np.stack([values.sum(0), np.square(values).sum(0)])
            count += len(values)
    channels = sums.shape[-1]
    mean = tuple(total / (255 * count) for total in sums[0].tolist())
    std = tuple(
        math.sqrt((count * squares - total**2) / (255 * count) ** 2)
        for total, squares in sums.T.tolist()
    )
    if not all(std):
        raise DataError(
            f"The training images have the same value everywhere in a colour (deviations {std}), "
            "so they cannot be divided by their deviations. Pass --normalization source."
        )
    return Statistics(mean * (3 // channels), std * (3 // channels))


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the mean and standard deviation of each colour of a data set's training images."""

    data_dir: Path | None = None
    """Folder of the data set."""
    dataset: Dataset = "folder"
    """The data set."""
    train_images: int | None = None
    """Measure so many images only, those that a run with this setting trains on."""
    image_size: int | None = None
    """Pixels a side, to which images are resized; by default the data set's own."""
    on_bad_image: OnBadImage = "skip"
    """A picture file that is damaged: skip it and say so, or stop."""
    stream: bool = False
    """Do not hold all pictures in memory, but read each twice."""
    workers: int = 0
    """Processes that read streamed pictures; 0: threads, one for each core."""
    seed: int = 0
    """Of the split, where validation and test images are cut from the training images, and of the
    images that `--train-images` keeps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the statistics of a data set's training images; returns the exit status."""
    from train.resolve import resolve  # late: it needs this module

    options = tyro.cli(Options, prog="python -m train.statistics", args=arguments)
    try:
        config = resolve(Config(**vars(options)))
        images = load_dataset(config).train
        statistics = measure(pixels_of(images))
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(images)} training images of {config.image_size} pixels a side")
    for name, values in statistics._asdict().items():
        print(f"{name}: {', '.join(f'{value:.4f}' for value in values)}")
    print(f"--normalization {statistics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
