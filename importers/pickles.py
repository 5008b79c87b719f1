"""An unpickler that knows tensors and plain containers, and refuses all else.

A pickle is a program: it may call whatever it can name. This one can name what a state dict needs,
and each of those names stands for a function of this module, never for torch's own. Tensors are
only described; their bytes are fetched, and their bounds checked, by the reader of the file.
"""

import dataclasses
import io
import mmap
import pickle
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from importers.errors import CheckpointError, FileFormatError, UnsafeFileError

__all__ = ["PickleError", "Storage", "Tensor", "Unpickler"]

MOST_AXES = 32

DTYPES = MappingProxyType(
    {
        "DoubleStorage": np.dtype(np.float64),
        "FloatStorage": np.dtype(np.float32),
        "HalfStorage": np.dtype(np.float16),
        "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
        "LongStorage": np.dtype(np.int64),
        "IntStorage": np.dtype(np.int32),
        "ShortStorage": np.dtype(np.int16),
        "CharStorage": np.dtype(np.int8),
        "ByteStorage": np.dtype(np.uint8),
        "BoolStorage": np.dtype(np.bool_),
    }
)


class PickleError(Exception):
    """A pickle is not one of tensors; says so without knowing the file."""

    def __init__(self, message: str, *, unsafe: bool = False) -> None:
        super().__init__(message)
        self.unsafe = unsafe

    def for_file(self, path: Path) -> CheckpointError:
        """The error to raise for the file that the pickle is in."""
        if self.unsafe:
            return UnsafeFileError(
                f"{path}: the file asks for {self}, which is not needed to read tensors, so it is "
                "refused and nothing of it was run. Save model.state_dict(), not the model, or "
                "convert the file to safetensors where you trust it."
            )
        return FileFormatError(
            f"{path}: expected a file of torch.save, found a damaged one ({self}). Get it again."
        )


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


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Function(NamedTuple):
    """What a pickle may call, by the name that it calls it by."""

    name: str


ALLOWED = MappingProxyType(
    {
        ("collections", "OrderedDict"): _Function("dict"),
        ("torch._utils", "_rebuild_tensor"): _Function("tensor"),
        ("torch._utils", "_rebuild_tensor_v2"): _Function("tensor"),
        ("torch._utils", "_rebuild_parameter"): _Function("parameter"),
        **{("torch", name): _StorageType(dtype) for name, dtype in DTYPES.items()},
    }
)

# The instructions that torch.save writes, and those that other writers of the same values may.
# Without the others a pickle cannot reach Python's classes at all.
OPCODES = (
    b"\x80\x95.0("  # protocol, frame, stop, pop, mark
    b"N\x88\x89JKM\x8aGX\x8cUT"  # None, booleans, numbers, strings
    b")\x85\x86\x87t]ael}sud"  # tuples, lists, dicts
    b"qrhj\x94"  # the memo
    b"c\x93QRb"  # names, persistent ids, calls, attributes
)


_PythonUnpickler: Any = pickle._Unpickler  # type stubs know the C one alone


class Unpickler(_PythonUnpickler):
    """Reads one pickle of containers, numbers, strings and tensors.

    Built on the pure-Python implementation: the C one may be made to allocate gigabytes by a
    single instruction that numbers a memo slot.

    Attributes:
      storages: every storage that the pickle named, by key.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        opcode: _PythonUnpickler.dispatch[opcode] for opcode in OPCODES
    }

    def __init__(self, file: io.BytesIO | mmap.mmap) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Returns the pickled value.

        Raises:
          PickleError: if the pickle is damaged, or asks for more than it may.
        """
        try:
            return super().load()
        except PickleError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            EOFError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
            struct.error,
        ) as error:
            raise PickleError(f"{type(error).__name__}: {error}") from error

    def find_class(self, module: str, name: str) -> Any:
        """Gives what a name stands for here."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            # Quoted and cut: the name is the file's own, and may steer a terminal or fill it.
            raise PickleError(repr(f"{module}.{name}"[:200]), unsafe=True) from None

    def persistent_load(self, pid: Any) -> Storage:
        """Describes a storage: `("storage", type, key, device, count[, view])`."""
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise PickleError("a storage without a known type")
        if any(part is not None for part in view):
            raise PickleError("a view of a storage, as torch wrote before version 0.4")
        storage = Storage(_text(key), storage_type.dtype, _natural(count))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PickleError(f"two storages called {storage.key!r}")
        return storage

    def load_reduce(self) -> None:
        """Calls one of the allowed functions."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Function):
            raise PickleError(f"a call of a {type(function).__name__}", unsafe=True)
        self.stack[-1] = _call(function.name, arguments)

    def load_build(self) -> None:
        """Drops the attributes of an object: a state dict's are only torch's versions."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            kind = type(self.stack[-1]).__name__
            raise PickleError(f"attributes of a {kind}", unsafe=True)

    def load_setitem(self) -> None:
        """Puts one value into a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Puts several values into a dict."""
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_dict(self) -> None:
        """Makes a dict of what lies above the mark."""
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        _set_items(made, items)
        self.append(made)

    dispatch[b"R"[0]] = load_reduce
    dispatch[b"b"[0]] = load_build
    dispatch[b"s"[0]] = load_setitem
    dispatch[b"u"[0]] = load_setitems
    dispatch[b"d"[0]] = load_dict


def _call(name: str, arguments: Any) -> Any:
    if name == "dict":
        if arguments != ():
            raise PickleError("an OrderedDict made from items")
        return {}
    if name == "parameter":
        tensor = arguments[0]
        if not isinstance(tensor, Tensor):
            raise PickleError("a parameter that is no tensor")
        return tensor
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without a storage")
    shape, strides = (tuple(_natural(number) for number in numbers) for numbers in (shape, strides))
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise PickleError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    return Tensor(storage, _natural(offset), shape, strides)


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise PickleError("items of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only these hash in a time that does not grow with what a hostile file nests in them.
        if not isinstance(key, str | int | float | bool | None):
            raise PickleError(f"a key of type {type(key).__name__}")
        if key in target:
            raise PickleError(f"the key {key!r} twice")
        target[key] = value


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        # Not shown: the text of a hostile value may be longer than memory.
        raise PickleError("a size, offset or stride that is no natural number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PickleError(f"a name of type {type(value).__name__}")
    return value
