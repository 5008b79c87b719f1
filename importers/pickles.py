"""An unpickler for state dicts: tensors, plain containers and numbers, and placeholders.

A pickle is a program that may call whatever it can name. Here each name that a state dict needs
stands for a function of this package, never for torch's own; and every other name for an inert
placeholder, of which a pickle can make only itself. So training checkpoints read, whatever lies
beside the weights. Tensors are only described: the reader of the file fetches their bytes and
checks their bounds.
"""

import codecs
import io
import mmap
import pickle
import re
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from importers.errors import FileFormatError
from importers.numpy_names import NUMPY, Array, Dtype
from importers.placeholders import Foreign, Storage, Unreadable, natural, set_items
from importers.python_names import PYTHON
from importers.torch_names import OLD_VIEW, TORCH

__all__ = ["Unpickler", "damaged"]

ALLOWED = {**PYTHON, **TORCH, **NUMPY}
"""What a pickle may name. Its functions are all that it can call, as they check themselves."""

# The instructions of protocols 0 to 5. Those for extension codes and for buffers outside the file
# are left out.
OPCODES = (
    b"\x80\x95.0(1"  # protocol, frame, stop, pop, marks
    b"N\x88\x89IJKMLG\x8a\x8bF"  # None, booleans, numbers
    b"SUTVX\x8c\x8dBC\x8e\x96"  # strings, bytes
    b")\x85\x86\x87t]ael}sud\x8f\x90\x91"  # tuples, lists, dicts, sets
    b"pqrghj\x94"  # the memo
    b"c\x93PQ"  # names, persistent ids
    b"Rbio\x81\x92"  # calls, attributes, instances
)
# All that protocol 0 keeps of a persistent id is its text. Short parts keep the match fast.
STORAGE_ID = re.compile(
    r"\('storage', <class '(torch(?:\.storage)?)\.(\w{1,40})'>, '(\w{1,40})', '[\w:]{1,40}', "
    r"(\d{1,18})(?:, None)?\)"
)
MODULE_ID = re.compile(r"\('module', <class '([\w.]{1,200})\.(\w{1,200})'>, ")
UNKNOWN_ESCAPE = re.compile(rb"""\\(?!['"abfnrtv]|x[0-9a-fA-F]{2})""")
LONGEST_KEY = 200  # letters of a storage's name

# What a damaged pickle raises, with a message or without.
TOLD = ArithmeticError, LookupError, TypeError, ValueError, pickle.UnpicklingError, struct.error
UNTOLD = AttributeError, EOFError, MemoryError, RecursionError

_PythonUnpickler: Any = pickle._Unpickler  # type stubs have only the C one


def damaged(path: Path, what: str) -> FileFormatError:
    """The error for a file that breaks off or contradicts itself."""
    return FileFormatError(
        f"{path}: expected a file of torch.save, found a damaged one ({what}). Get it again."
    )


class _Memo(dict[Any, Any]):
    """What a pickle keeps to name it again, by slot.

    As text, because its hashes cannot be foreseen: a hostile file could choose numbers that all
    collide.
    """

    def __getitem__(self, slot: Any) -> Any:
        return super().__getitem__(str(slot))

    def __setitem__(self, slot: Any, value: Any) -> None:
        super().__setitem__(str(slot), value)


class Unpickler(_PythonUnpickler):
    """Reads one pickle of containers, numbers, strings, tensors and NumPy arrays.

    All else becomes a placeholder. Time and memory grow no faster than the file: numbers, tuples
    and sets are never hashed, and nothing that the pickle can name twice is copied twice.

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
        self.memo = _Memo()
        self.path = path
        self.storages: dict[str, Storage] = {}
        start = file.tell()
        file.seek(0, io.SEEK_END)
        self.left_to_encode = file.tell()
        file.seek(start)

    def load(self) -> Any:
        """Returns the pickled value.

        Raises:
          FileFormatError: if the pickle is damaged.
        """
        try:
            return super().load()
        except UNTOLD as error:
            raise damaged(self.path, type(error).__name__) from error
        except TOLD as error:
            raise damaged(self.path, str(error)[:200]) from error

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name stands for here."""
        if (module, name) == ("_codecs", "encode"):  # bytes, in protocols without them
            return self._encode
        allowed = ALLOWED.get((module, name))
        return Foreign(module, name) if allowed is None else allowed

    def persistent_load(self, pid: Any) -> Storage | Foreign | Unreadable:
        """Describes a storage: `("storage", dtype, key, device, count[, view])`."""
        if type(pid) is str:
            pid = self._id_of_text(pid)
        if type(pid) is not tuple or len(pid) not in (4, 5, 6):
            raise ValueError("an unknown persistent id")
        if pid[0] == "module" and isinstance(pid[1], Foreign):
            return pid[1]  # the old format kept a module's source beside it
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or type(key) is not str or len(key) > LONGEST_KEY:
            raise ValueError("a storage without a name")
        if isinstance(dtype, Foreign):
            return dtype
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage without a type")
        storage = Storage(key, dtype, natural(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two storages called {key!r}")
        return storage if view in ([], [None]) else OLD_VIEW

    def _id_of_text(self, text: str) -> Any:
        if found := STORAGE_ID.fullmatch(text):
            module, name, key, count = found.groups()
            return "storage", self.find_class(module, name), key, "", int(count)
        if found := MODULE_ID.match(text):
            return "module", Foreign(*found.groups()), "", ""
        return text

    def _decode_string(self, value: bytes) -> str | bytes:
        """Decodes Python 2's strings, which also held bytes."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding not in ("latin1", "utf-8"):
            raise ValueError("text to encode that is not text")
        # A file has room to write each text once. One that is named again and again fills memory.
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0:
            raise ValueError("more text to encode than the file holds")
        return text.encode(encoding)

    def load_string(self) -> None:
        """Reads a quoted string of Python 2."""
        text = self.readline()[:-1]
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        # Python would warn of these, and go on. Escaped backslashes could hide or feign them.
        if UNKNOWN_ESCAPE.search(text.replace(b"\\\\", b"")):
            raise ValueError("a string with an unknown escape")
        self.append(self._decode_string(codecs.escape_decode(text[1:-1])[0]))

    def load_bytearray8(self) -> None:
        """Reads bytes that the writer could change; Python's own makes room for any size first."""
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(natural(size)))

    def load_dict(self) -> None:
        """Makes a dict of what follows the mark."""
        items, made = self.pop_mark(), {}
        set_items(made, items)
        self.append(made)

    def load_empty_set(self) -> None:
        """Makes a placeholder, as no set is needed."""
        self.append(Foreign("builtins", "set"))

    def load_frozenset(self) -> None:
        """Makes a placeholder, and drops its items."""
        self.pop_mark()
        self.append(Foreign("builtins", "frozenset"))

    def load_reduce(self) -> None:
        """Calls a function of this package. A placeholder stays what it is."""
        arguments = self.stack.pop()
        if not isinstance(self.stack[-1], Foreign):
            self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj(self) -> None:
        """Drops the arguments of a class, which must be a placeholder."""
        self.stack.pop()
        self._check_foreign(self.stack[-1])

    def load_newobj_ex(self) -> None:
        """Drops both kinds of arguments of a class."""
        self.stack.pop()
        self.load_newobj()

    def load_obj(self) -> None:
        """Makes an instance as protocol 1 did."""
        made = self.pop_mark()[0]
        self._check_foreign(made)
        self.append(made)

    def load_inst(self) -> None:
        """Makes an instance as protocol 0 did."""
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.pop_mark()
        made = self.find_class(module, name)
        self._check_foreign(made)
        self.append(made)

    def load_build(self) -> None:
        """Drops attributes: those of a state dict are only torch's versions."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Array):
            target.build(state, self._encode)
        elif isinstance(target, Dtype):
            target.build(state)
        elif type(target) is not dict:
            self._check_foreign(target)

    def load_append(self) -> None:
        """Puts one value into a list."""
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        """Puts several values into a list."""
        self._extend(self.pop_mark())

    def load_additems(self) -> None:
        """Drops the items of a set."""
        self.pop_mark()
        self._check_foreign(self.stack[-1])

    def load_setitem(self) -> None:
        """Puts one value into a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Puts several values into a dict."""
        self._set_items(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        else:
            self._check_foreign(self.stack[-1])

    def _set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is dict:
            set_items(self.stack[-1], items)
        else:
            self._check_foreign(self.stack[-1])

    def _check_foreign(self, target: Any) -> None:
        """Checks that only a placeholder is changed: any other value would then be wrong."""
        if not isinstance(target, Foreign | Unreadable):
            raise ValueError(f"items or attributes of a {type(target).__name__}")

    dispatch.update(
        {
            pickle.STRING[0]: load_string,
            pickle.BYTEARRAY8[0]: load_bytearray8,
            pickle.DICT[0]: load_dict,
            pickle.EMPTY_SET[0]: load_empty_set,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.OBJ[0]: load_obj,
            pickle.INST[0]: load_inst,
            pickle.BUILD[0]: load_build,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
            pickle.ADDITEMS[0]: load_additems,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
        }
    )
