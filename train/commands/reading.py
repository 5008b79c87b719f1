"""Read the pictures of a fit: any that lie in a folder, without their labels."""

import sys
from pathlib import Path

import numpy as np

from train.decoding import catch_warnings, read_picture
from train.errors import DataError, name_some
from train.folders import visible_files

__all__ = ["draw_pictures"]


def draw_pictures(folder: Path, count: int, size: int, seed: int) -> np.ndarray:
    """Reads pictures of a folder, drawn at random, and resized as in training.

    Files that are no pictures are passed over. What differs from what was asked for is said on
    standard error.

    Args:
      folder: of the pictures, in sub-folders or not.
      count: how many to read, if there are so many.
      size: pixels a side.
      seed: of the order in which files are drawn.

    Returns:
      uint8 `[N, size, size, 3]`.

    Raises:
      DataError: if there are no pictures in it, or the pixels of one must not be guessed.
    """
    if not folder.is_dir():
        raise DataError(f"images={str(folder)!r}: there is no such folder. Give one of pictures.")
    files = visible_files(folder)
    pictures, unreadable = [], []
    with catch_warnings():
        for place in np.random.default_rng(seed).permutation(len(files)):
            read = read_picture(files[place], size)
            if read.refused:
                raise DataError(f"{files[place]}: {read.refused}")
            if read.pixels is None:
                unreadable.append(files[place])
            else:
                pictures.append(read.pixels)
            if len(pictures) == count:
                break
    if not pictures:
        raise DataError(
            f"images={str(folder)!r} has no readable picture among {len(files)} files. Give a "
            "folder of pictures of the task."
        )
    if unreadable:
        note = f"unreadable files, skipped: {len(unreadable)} ({name_some(unreadable)})"
        print(note, file=sys.stderr)
    if len(pictures) < count:
        print(f"pictures in {folder}: {len(pictures)}, fewer than {count}", file=sys.stderr)
    return np.stack(pictures)
