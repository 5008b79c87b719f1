"""From what a pickle holds to arrays by name."""

import itertools
import math
import mmap
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from importers.errors import FileFormatError, UnsafeFileError
from importers.numpy_names import Array
from importers.pickles import damaged
from importers.placeholders import Foreign, OtherKey, Storage, Tensor, Unreadable
from importers.wrappers import NESTS, flatten, innermost

__all__ = ["Collect", "Locate", "arrays_by_name", "everything_by_name"]

MOST_REPEATED = 1 << 20  # elements that a tensor may make of fewer stored ones, by stride 0
MOST_PARTS = 100  # of a dict, looked at to see whether it holds tensors
MOST_LINES = 20  # of an error; enough to see what the others are

Locate = Callable[[Storage], tuple[int, int]]
"""Finds the bytes of a storage in the file, as `(offset, size)`."""

Collect = Callable[[Path, mmap.mmap, object, Locate], dict[str, Any]]
"""`arrays_by_name` or `everything_by_name`."""


def arrays_by_name(
    path: Path, data: mmap.mmap, loaded: object, locate: Locate
) -> dict[str, np.ndarray]:
    """Finds the state dict, and turns the tensors described there into views of the file.

    Args:
      path: of the file, for errors.
      data: its content.
      loaded: what an `Unpickler` made of its pickle.
      locate: finds the storages of tensors.

    Raises:
      FileFormatError: if there is no state dict, or if it holds other things than tensors.
      UnsafeFileError: if it is an object of a class that is not allowed, or holds one.
    """
    entries: dict[Any, Any] = {
        name: value.value if isinstance(value, Array) else value
        for name, value in innermost(_mapping(path, loaded)).items()
    }
    _check(path, entries)
    return {name: _value(path, data, name, value, locate) for name, value in entries.items()}


def everything_by_name(
    path: Path, data: mmap.mmap, loaded: object, locate: Locate
) -> dict[str, Any]:
    """As `arrays_by_name`, but takes all entries of nested dicts, and refuses none of them.

    Raises:
      FileFormatError: if the file holds no dict, or is damaged.
      UnsafeFileError: if it is an object of a class that is not allowed.
    """
    entries = flatten(_mapping(path, loaded))
    return {name: _value(path, data, name, value, locate) for name, value in entries.items()}


def _mapping(path: Path, loaded: object) -> dict[Any, Any]:
    if isinstance(loaded, Foreign):
        raise _unsafe(path, loaded, "")
    if not isinstance(loaded, dict) or not loaded:
        raise FileFormatError(
            f"{path}: expected a state dict of tensors by name, found "
            f"{'an empty one' if loaded == {} else type(loaded).__name__}. Save model.state_dict()."
        )
    return loaded


def _value(path: Path, data: mmap.mmap, name: str, value: object, locate: Locate) -> Any:
    if isinstance(value, Array):
        return value.value
    return _view(path, data, name, value, locate) if isinstance(value, Tensor) else value


def _check(path: Path, entries: Mapping[Any, Any]) -> None:
    """Refuses all that is not a tensor with a name."""
    strays = {name: value for name, value in entries.items() if not _is_tensor(name, value)}
    foreign = [name for name, value in strays.items() if isinstance(value, Foreign)]
    if foreign and not any(map(_is_nest, strays.values())):
        # A pickled model is what is wanted, and what lies beside it is not.
        name = min(foreign, key=lambda name: name not in NESTS)
        raise _unsafe(path, strays[name], f" under {_describe_key(name)}")
    if strays:
        raise FileFormatError(
            f"{path}: expected a state dict of tensors by name, found{_joined(strays)}"
        )


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor | np.ndarray | Array)


def _is_nest(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    # Not all of it: a hostile file can have one dict stand in many places.
    return any(_is_tensor("", part) for part in itertools.islice(value.values(), MOST_PARTS))


def _unsafe(path: Path, found: Foreign, where: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path}: the file asks for {found}{where}, which is not needed to read tensors, so "
        "it is refused and nothing of it was run. Save model.state_dict() instead of the "
        "model, or convert the file to safetensors if you trust it."
    )


def _joined(strays: Mapping[Any, Any]) -> str:
    if len(strays) == 1:
        ((name, value),) = strays.items()
        return f" {_stray(name, value)}"
    first = itertools.islice(strays.items(), MOST_LINES)
    lines = [f"  {_stray(name, value)}" for name, value in first]
    if len(strays) > MOST_LINES:
        lines.append(f"  and {len(strays) - MOST_LINES} more.")
    return f" {len(strays)} other entries:\n" + "\n".join(lines)


def _stray(name: object, value: object) -> str:
    """What is wrong with an entry, and what to do."""
    if not isinstance(name, str):
        return f"{_describe_key(name)}, which is not text. Save model.state_dict()."
    if isinstance(value, Unreadable):
        return f"{_describe_key(name)} that holds {value.what}. {value.remedy}"
    advice = (
        f"Save the part under {name[:100]!r} by itself." if _is_nest(value) else "Leave it out."
    )
    return f"{_describe_key(name)} that holds {_describe(value)}. {advice}"


def _describe_key(name: object) -> str:
    if isinstance(name, OtherKey):
        return f"the key {_number(name.key) or f'of type {type(name.key).__name__}'}"
    return f"key {str(name)[:100]!r}"


def _describe(value: object) -> str:
    if isinstance(value, Foreign):
        return f"an object of {value}"
    text = repr(value[:40]) if isinstance(value, str) else _number(value)
    return f"{type(value).__name__} {text}".strip()


def _number(value: object) -> str:
    """The text of a number, unless a hostile file made one whose text is longer than memory."""
    is_short = isinstance(value, int) and abs(value) < 1 << 64
    return repr(value) if is_short or value is None or isinstance(value, float) else ""


def _view(path: Path, data: mmap.mmap, name: str, tensor: Tensor, locate: Locate) -> np.ndarray:
    storage = tensor.storage
    offset, size = locate(storage)
    itemsize = storage.dtype.itemsize
    available = max(min(size, len(data) - offset), 0) // itemsize
    # In the old format, a storage longer than described would shift all that follow it.
    if storage.count != available:
        raise damaged(
            path, f"tensor {name!r} needs {storage.count} elements, {available} are there"
        )
    elements = math.prod(tensor.shape)
    extent = math.prod(n for n in tensor.shape if n) * itemsize
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    inside = elements == 0 or last < storage.count
    # NumPy refuses a larger extent, even if one axis is empty.
    holdable = extent <= sys.maxsize and elements <= max(storage.count, MOST_REPEATED)
    if not (inside and holdable):
        raise damaged(
            path,
            f"tensor {name!r} of shape {tensor.shape} and strides {tensor.strides} from "
            f"{tensor.offset} on does not lie in its storage of {storage.count} elements",
        )
    if elements == 0:
        return np.empty(tensor.shape, storage.dtype)
    # The stride of an axis of length 1 is never used, and may be too large for NumPy.
    strides = [
        (stride if n > 1 else 1) * itemsize
        for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    ]
    start = offset + tensor.offset * itemsize
    return np.ndarray(tensor.shape, storage.dtype, data, start, strides)
