"""What NumPy's names in a pickle stand for, so that NumPy itself unpickles nothing of the file."""

import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from importers.placeholders import Foreign, Unreadable, shape_of

__all__ = ["NUMPY", "Array", "Dtype"]

PLAIN = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
"""Codes of the dtypes whose values are bytes and nothing else."""

HOLLOW = Unreadable("an array without values", "Leave it out.")


class Dtype:
    """Stands for a `numpy.dtype`.

    Attributes:
      code: such as "f4".
      order: of its bytes, such as "<".
    """

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.code = code
        self.order = "|"

    def build(self, state: Any) -> None:
        """Takes the byte order, which comes in a second step."""
        self.order = state[1]


class Array:
    """Stands for a `numpy.ndarray`, whose values come in a second step.

    Attributes:
      value: a read-only array, or what is wrong with it.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | Unreadable = HOLLOW

    def build(self, state: Any, encode: Callable[[str, str], bytes]) -> None:
        """Takes `(version, shape, dtype, is_fortran, values)`.

        Args:
          state: from the pickle.
          encode: turns text into bytes, as Python 2 had no difference between them.
        """
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("an array of unknown parts")
        _, shape, dtype, is_fortran, values = state
        if type(values) is str:
            values = encode(values, "utf-8")
        self.value = _array(values, dtype, shape, "F" if is_fortran is True else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array | Foreign:
    if not isinstance(kind, Foreign):
        raise ValueError("an array of no class")
    return Array() if (kind.module, kind.name) == ("numpy", "ndarray") else kind


def _from_buffer(values: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = _array(values, dtype, shape, "F" if order == "F" else "C")
    return array


def _array(values: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | Unreadable:
    """Returns a view of the values."""
    if not isinstance(dtype, Dtype) or type(dtype.code) is not str:
        return Unreadable("an array of another package's dtype", "Use array.astype('float32').")
    if not PLAIN.fullmatch(dtype.code):
        return Unreadable(f"an array of dtype {dtype.code[:20]!r}", "Leave it out.")
    if dtype.order == ">":
        return Unreadable("a big-endian array", "Save it again on a little-endian machine.")
    if type(values) is not bytes:
        raise ValueError("an array without values")
    shape = shape_of(shape)
    flat = np.frombuffer(values, dtype.code)
    if flat.size != math.prod(shape):
        raise ValueError(f"an array of {flat.size} values, not {math.prod(shape)}")
    return flat.reshape(shape, order=order)


NUMPY: Mapping[tuple[str, str], Any] = types.MappingProxyType(
    {
        ("numpy", "dtype"): Dtype,
        # The package `core` became `_core` in NumPy 2.
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    }
)
