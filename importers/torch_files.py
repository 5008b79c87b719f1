"""Read the files that `torch.save` writes, with NumPy alone.

Both formats hold a pickle that describes the tensors, and the raw bytes of the storages that they
are views of. The zip format keeps each storage in an entry of its own; the format from before torch
1.6 appends them to the pickle.
"""

import io
import math
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from importers.errors import FileFormatError
from importers.pickles import Storage, Tensor, Unpickler, damaged
from importers.wrappers import flatten, innermost

__all__ = ["is_legacy", "read_legacy", "read_zip"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LOCAL_HEADER = 30  # bytes before the name in a zip entry's local header
MOST_REPEATED = 1 << 20  # elements that a tensor may make of fewer stored ones, by stride 0

Data = mmap.mmap
Locate = Callable[[Storage], tuple[int, int]]
"""Finds the bytes of a storage in the file, as `(offset, size)`."""


def is_legacy(data: Data) -> bool:
    """Whether a file begins as `torch.save` did before torch 1.6."""
    return data[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in data[:32]


def read_zip(path: Path, data: Data, *, whole: bool) -> dict[str, Any]:
    """Reads torch's zip format; see `read_state_dict`, or `read_checkpoint` for the whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, str(error)) from error
    names = [entry.filename for entry in entries]
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise FileFormatError(
            f"{path}: expected a file of torch.save, found a zip archive with {len(names)} "
            f"entries, {len(pickles)} of them called data.pkl. Give the .pth file itself."
        )
    root = pickles[0].removesuffix("data.pkl")
    places = {
        entry.filename.removeprefix(root): _place(path, data, entry)
        for entry in entries
        if entry.filename.startswith(root)
    }
    if "byteorder" in places and _slice(data, places["byteorder"]) != b"little":
        raise _big_endian(path)

    def locate(storage: Storage) -> tuple[int, int]:
        try:
            return places[f"data/{storage.key}"]
        except KeyError:
            raise damaged(path, f"storage {storage.key!r} is missing") from None

    description = io.BytesIO(_slice(data, places["data.pkl"]))
    return _build(path, data, Unpickler(description, path).load(), locate, whole=whole)


def read_legacy(path: Path, data: Data, *, whole: bool) -> dict[str, Any]:
    """Reads the format from before torch 1.6; see `read_zip`."""
    data.seek(0)
    magic, protocol, system = (Unpickler(data, path).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise damaged(path, "wrong magic number or protocol")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _big_endian(path)
    unpickler = Unpickler(data, path)
    tensors = unpickler.load()
    keys = Unpickler(data, path).load()
    if not isinstance(keys, list):
        raise damaged(path, "the list of storages is missing")
    places = {}
    offset = data.tell()
    for key in keys:
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise damaged(path, f"storage {key!r} belongs to no tensor")
        count = int.from_bytes(data[offset : offset + 8], "little")
        places[key] = (offset + 8, count * storage.dtype.itemsize)
        offset = sum(places[key])

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise damaged(path, f"storage {storage.key!r} is missing")
        return places[storage.key]

    return _build(path, data, tensors, locate, whole=whole)


def _build(
    path: Path, data: Data, loaded: object, locate: Locate, *, whole: bool
) -> dict[str, Any]:
    """Turns the described tensors into views of the file."""
    if not isinstance(loaded, dict) or not loaded:
        raise FileFormatError(
            f"{path}: expected a state dict of tensors by name, found "
            f"{'an empty one' if loaded == {} else type(loaded).__name__}. Save model.state_dict()."
        )
    if whole:
        return {
            name: _view(path, data, name, value, locate(value.storage))
            if isinstance(value, Tensor)
            else value
            for name, value in flatten(loaded).items()
        }
    entries = innermost(loaded)
    strays = [stray for name, value in entries.items() if (stray := _stray(name, value))]
    if strays:
        raise FileFormatError(
            f"{path}: expected a state dict of tensors by name, found{_joined(strays)}"
        )
    return {
        name: _view(path, data, name, value, locate(value.storage))
        for name, value in entries.items()
    }


def _stray(name: object, value: object) -> str:
    """What is wrong with an entry, and what to do; nothing if it is a tensor with a name."""
    if not isinstance(name, str):
        return f"the key {name!r}, which is not text. Save model.state_dict()."
    if isinstance(value, Tensor):
        return ""
    nested = isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())
    advice = f"Save the part under {name!r} by itself." if nested else "Leave it out."
    return f"key {name!r} that holds {_describe(value)}. {advice}"


def _joined(strays: list[str]) -> str:
    if len(strays) == 1:
        return f" {strays[0]}"
    return f" {len(strays)} other entries:\n" + "\n".join(f"  {stray}" for stray in strays)


def _view(path: Path, data: Data, name: str, tensor: Tensor, place: tuple[int, int]) -> np.ndarray:
    offset, size = place
    storage = tensor.storage
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
    flat = np.frombuffer(data, storage.dtype, storage.count, offset)
    # The stride of an axis of length 1 is never used, and may be too large for NumPy.
    strides = [
        (stride if n > 1 else 1) * itemsize
        for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, strides, writeable=False
    )


def _place(path: Path, data: Data, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a zip entry's bytes lie, as `(offset, size)`."""
    # torch never compresses, and this way a small file cannot unpack into a large one.
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise FileFormatError(
            f"{path}: entry {entry.filename!r} is compressed, which torch.save never does. Unpack "
            "the archive and zip it again without compression, or get the original file."
        )
    if entry.header_offset < 0:
        raise damaged(path, f"entry {entry.filename!r} begins before the file")
    header = data[entry.header_offset : entry.header_offset + LOCAL_HEADER]
    # Lengths as in the local header: torch pads its extra field to align the data.
    skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = entry.header_offset + LOCAL_HEADER + skipped
    if header[:4] != b"PK\x03\x04" or offset + entry.file_size > len(data):
        raise damaged(path, f"entry {entry.filename!r} ends after the file")
    return offset, entry.file_size


def _slice(data: Data, place: tuple[int, int]) -> bytes:
    offset, size = place
    return data[offset : offset + size]


def _describe(value: object) -> str:
    text = repr(value) if isinstance(value, int | float | str) else ""
    return f"{type(value).__name__} {text[:40]}".strip()


def _big_endian(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path}: expected little-endian data, found a file from a big-endian machine. Save it "
        "again on a little-endian one."
    )
