"""How fast picture files are read, and what share of its time a consumer waits for them.

    python -m benchmarks.streaming [--side 500] [--size 224] [--count 400] [--workers 0]

It writes JPEGs of smooth noise, about as large on disk as photographs, and reads them as a streamed
run does. `one core` counts the CPU time of one thread, so that other programs matter little. The
other columns are by the clock: they need a quiet machine. `waits` is the share of the time in which
a consumer that takes as long as reading does waits for its next batch.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.batches import batches
from train.config import Config
from train.data import PictureFiles
from train.decoding import catch_warnings, read_picture
from train.devices import find_devices

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="Rate at which picture files are read.")
    parser.add_argument("--side", type=int, default=500, help="pixels of the files")
    parser.add_argument("--size", type=int, default=224, help="pixels to which they are resized")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = save_photographs(Path(folder), options.count, options.side)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        files = PictureFiles(
            np.array(paths, object), np.zeros(len(paths), np.int32), options.size, options.workers
        )
        alone = rate_of_one_core(paths, options.size)
        start = time.perf_counter()
        share_waited(stream(files), lambda batch: None)
        together = options.count / (time.perf_counter() - start)
        waits = share_waited(stream(files), lambda batch: time.sleep(BATCH / together))
    print("| pixels | kB | one core, pictures/s | by the clock, pictures/s | waits |")
    print("|---|---|---|---|---|")
    print(f"| {options.side} | {kilobytes:.0f} | {alone:.0f} | {together:.0f} | {waits:.0%} |")


def save_photographs(folder: Path, count: int, side: int) -> list[Path]:
    """Writes JPEGs of quality 90, and returns their paths."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = generator.integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        pixels = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    return paths


def rate_of_one_core(paths: list[Path], size: int) -> float:
    """Pictures that one thread reads in a second of CPU time."""
    with catch_warnings():
        start = time.thread_time()
        for path in paths:
            read_picture(path, size)
        return len(paths) / (time.thread_time() - start)


def stream(files: PictureFiles) -> Any:
    order = np.arange(len(files) // BATCH * BATCH).reshape(-1, BATCH)
    return batches(files, order, find_devices(Config(batch_size=BATCH)).rows)


def share_waited(read: Any, use: Callable[[Any], None]) -> float:
    """The share of the time in which a consumer waits for `next` of an iterator, which it closes.

    Args:
      read: the iterator, such as `train.batches.batches` returns.
      use: what is done with each batch, to its end: it blocks until the devices are done.
    """
    waited, start = 0.0, time.perf_counter()
    with contextlib.closing(read):
        for before, batch, after in _timed(read):
            waited += after - before
            use(batch)
    return waited / (time.perf_counter() - start)


def _timed(read: Iterator[Any]) -> Iterator[tuple[float, Any, float]]:
    before = time.perf_counter()
    for batch in read:
        yield before, batch, time.perf_counter()
        before = time.perf_counter()


if __name__ == "__main__":
    main()
