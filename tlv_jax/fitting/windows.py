"""What a conv reads at places of its output.

`N` images, `P` places of each, `K` places of a window, `C` channels.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

CHUNK = 1 << 22  # numbers at once


def windows(
    reads: np.ndarray, places: np.ndarray, kernel: tuple[int, ...], params: Mapping[str, Any]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Takes windows, of some images at once.

    Args:
      reads: `[N, *size, C]`.
      places: of the output's grid, `[N, P]`.
      kernel: the spatial size of the kernel.
      params: of the convolution, as JAX has them: padding, strides and the kernel's dilation. What
        it reads must not be dilated.

    Yields:
      Which images, and what is read for them, `[N', P, K, C]`.
    """
    padding, strides = params["padding"], params["window_strides"]
    steps = params["rhs_dilation"]
    axes = range(len(kernel))
    size = [
        (n + sum(pads) - (k - 1) * step - 1) // stride + 1
        for n, pads, k, step, stride in zip(
            reads.shape[1:-1], padding, kernel, steps, strides, strict=True
        )
    ]
    corners = np.unravel_index(places, size)
    # Indices into the images with one more value at either end: all padding is read from there.
    taken = [
        [
            np.clip(corners[axis] * strides[axis] + k * steps[axis] - padding[axis][0], -1, n) + 1
            for k in range(kernel[axis])
        ]
        for axis, n in zip(axes, reads.shape[1:-1], strict=True)
    ]
    offsets = list(itertools.product(*map(range, kernel)))
    images = max(CHUNK // (places.shape[1] * len(offsets) * reads.shape[-1]), 1)
    for start in range(0, len(reads), images):
        some = slice(start, min(start + images, len(reads)))
        padded = np.pad(reads[some], [(0, 0), *[(1, 1) for _ in axes], (0, 0)])
        rows = np.arange(len(padded))[:, None]
        windows = [
            padded[(rows, *(taken[axis][k][some] for axis, k in enumerate(offset)))]
            for offset in offsets
        ]
        yield some, np.stack(windows, axis=2)
