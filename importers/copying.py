"""Copy an array into Flax's layout, as fast as memory allows and holding little of the source.

Checkpoints are mapped into memory. Taken in blocks of a few rows, an array is read once, checked
and transposed while the block is in the processor's cache, and the mapped pages are given back
right after: the peak is the copy itself, not twice its size.
"""

import functools
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from importers.layouts import Layout

__all__ = ["Copied", "copy_to_flax"]

BLOCK_BYTES = 1 << 19
CACHE_LINE = 64  # bytes; a transposed block writes at least as much in one piece


class Copied(NamedTuple):
    """A copy, and how many of its values are NaN or infinite."""

    array: np.ndarray
    broken: int


def copy_to_flax(array: np.ndarray, layout: Layout, dtype: Any = None) -> Copied:
    """Copies an array of torch's layout. The result is C-contiguous and shares no memory.

    Args:
      array: floating point, in torch's layout; often a view into a mapped file.
      layout: how the axes change.
      dtype: of the copy; `None` keeps the array's.
    """
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    # A narrower dtype may make an infinity of a large number; else the source is quicker to check.
    narrower = ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(array.dtype).max
    if array.ndim == 0 or array.nbytes <= BLOCK_BYTES:
        with np.errstate(over="ignore"):
            converted = np.array(layout.to_flax(array), dtype, order="C")
        return Copied(converted, _count_broken(converted if narrower else array))
    count, line = len(array), CACHE_LINE // array.itemsize
    rows = max(BLOCK_BYTES * count // array.nbytes // line, 1) * line
    shape = list(layout.to_flax(array[:1]).shape)
    shape[layout.outputs_axis] = count
    converted = np.empty(shape, dtype)
    outputs = np.moveaxis(converted, layout.outputs_axis, -1)
    pages = _MappedPages.behind(array)

    def copy_block(start: int) -> int:
        block = array[start : start + rows]
        # First, and in any case: it brings the block into the cache in the order of its bytes.
        broken = _count_broken(block)
        turned = np.moveaxis(layout.to_flax(block), layout.outputs_axis, -1)
        with np.errstate(over="ignore"):
            outputs[..., start : start + rows] = turned
        if narrower:
            broken = _count_broken(outputs[..., start : start + rows])
        if pages is not None:
            pages.give_back(block)
        return broken

    return Copied(converted, sum(_threads().map(copy_block, range(0, count, rows))))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # NumPy lets go of the interpreter's lock while it copies.
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "copy_to_flax")


def _count_broken(array: np.ndarray) -> int:
    # The extremes of an array with a NaN are NaN: two quick passes and no temporary array.
    if not array.size or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return 0
    return array.size - int(np.isfinite(array).sum())


class _MappedPages(NamedTuple):
    """The mapped file behind an array.

    Attributes:
      file: the mapping.
      address: where it begins.
    """

    file: mmap.mmap
    address: int

    @classmethod
    def behind(cls, array: np.ndarray) -> "_MappedPages | None":
        """Finds it, if there is one and the system can take pages back."""
        base: Any = array
        while isinstance(base, np.ndarray) or hasattr(base, "base"):
            base = base.base
        base = base.obj if isinstance(base, memoryview) else base
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return None
        return cls(base, np.frombuffer(base, np.uint8).ctypes.data)

    def give_back(self, block: np.ndarray) -> None:
        """Lets the system have the pages of a block; they are read again if they are used again."""
        if not block.flags.c_contiguous:
            return
        begin = block.ctypes.data - self.address
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        last = (begin + block.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.file.madvise(mmap.MADV_DONTNEED, first, last - first)
