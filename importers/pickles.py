"""An unpickler for state dicts: tensors, plain containers and numbers, and nothing else.

A pickle is a program that may call whatever it can name. Here it can name only what a state dict
needs, and each name stands for a function of this module, never for torch's own. Tensors are only
described: the reader of the file fetches their bytes and checks their bounds.
"""

import dataclasses
import io
import mmap
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from importers.errors import CheckpointError, FileFormatError, UnsafeFileError

__all__ = ["Storage", "Tensor", "Unpickler", "damaged"]

MOST_AXES = 32


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements of one dtype, somewhere in the file."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, its offset and strides counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def damaged(path: Path, what: str) -> FileFormatError:
    """The error for a file that breaks off or contradicts itself."""
    return FileFormatError(
        f"{path}: expected a file of torch.save, found a damaged one ({what}). Get it again."
    )


def _ordered_dict() -> dict[Any, Any]:
    return {}  # its items follow, one by one


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = tuple(map(_natural, shape)), tuple(map(_natural, strides))
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    return Tensor(storage, _natural(offset), shape, strides)


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return tensor


ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch", "DoubleStorage"): np.dtype(np.float64),
        ("torch", "FloatStorage"): np.dtype(np.float32),
        ("torch", "HalfStorage"): np.dtype(np.float16),
        ("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
        ("torch", "LongStorage"): np.dtype(np.int64),
        ("torch", "IntStorage"): np.dtype(np.int32),
        ("torch", "ShortStorage"): np.dtype(np.int16),
        ("torch", "CharStorage"): np.dtype(np.int8),
        ("torch", "ByteStorage"): np.dtype(np.uint8),
        ("torch", "BoolStorage"): np.dtype(np.bool_),
    }
)
"""What a pickle may name. Its functions are all that it can call, as they check themselves."""

# What pickles of protocol 2 to 5 consist of. The instructions that make instances of classes are
# left out.
OPCODES = (
    b"\x80\x95.0("  # protocol, frame, stop, pop, mark
    b"N\x88\x89JKM\x8aGX\x8cUT"  # None, booleans, numbers, strings
    b")\x85\x86\x87t]ae}su"  # tuples, lists, dicts
    b"qrhj\x94"  # the memo
    b"c\x93QRb"  # names, persistent ids, calls, attributes
)

# What a damaged pickle raises, with a message or without.
TOLD = ArithmeticError, LookupError, TypeError, ValueError, pickle.UnpicklingError, struct.error
UNTOLD = AttributeError, EOFError, MemoryError, RecursionError

_PythonUnpickler: Any = pickle._Unpickler  # type stubs have only the C one


class Unpickler(_PythonUnpickler):
    """Reads one pickle of containers, numbers, strings and tensors.

    Built on the pure-Python implementation: a single instruction that numbers a memo slot makes
    the C one allocate gigabytes.

    Attributes:
      storages: every storage that the pickle named, by key.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        opcode: _PythonUnpickler.dispatch[opcode] for opcode in OPCODES
    }

    def __init__(self, file: io.BytesIO | mmap.mmap, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Returns the pickled value.

        Raises:
          FileFormatError: if the pickle is damaged.
          UnsafeFileError: if it names anything that is not needed for tensors.
        """
        try:
            return super().load()
        except CheckpointError:
            raise
        except UNTOLD as error:
            raise damaged(self.path, type(error).__name__) from error
        except TOLD as error:
            raise damaged(self.path, str(error)) from error

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name stands for here."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            # Quoted and cut: the name comes from the file and could fill or steer a terminal.
            asked = repr(f"{module}.{name}"[:200])
            raise UnsafeFileError(
                f"{self.path}: the file asks for {asked}, which is not needed to read tensors, so "
                "it is refused and nothing of it was run. Save model.state_dict() instead of the "
                "model, or convert the file to safetensors if you trust it."
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        """Describes a storage: `("storage", dtype, key, device, count[, view])`."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("a storage without a known type or name")
        if any(part is not None for part in view):
            raise ValueError("a view of a storage, as torch wrote before version 0.4")
        storage = Storage(key, dtype, _natural(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two storages called {key!r}")
        return storage

    def load_build(self) -> None:
        """Drops the attributes of a dict: those of a state dict are only torch's versions."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:  # a function of this module, say
            raise ValueError(f"attributes of a {type(self.stack[-1]).__name__}")

    def load_setitem(self) -> None:
        """Puts one value into a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Puts several values into a dict."""
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise ValueError("items of something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # A hostile file can nest tuples so that hashing them takes forever; these hash at once.
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"a key of type {type(key).__name__}")
        if key in target:
            raise ValueError(f"the key {key!r} twice")
        target[key] = value


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        # Not shown: the text of a hostile number may be longer than memory.
        raise ValueError("a size, offset or stride that is not a natural number")
    return number
