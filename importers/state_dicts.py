"""Read a state dict from a file of any format, without torch."""

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from importers.errors import FileFormatError
from importers.other_files import description
from importers.pickled_arrays import Collect, arrays_by_name, everything_by_name
from importers.torch_files import is_legacy, is_pickle, read_legacy, read_pickle, read_zip

__all__ = ["read_checkpoint", "read_state_dict"]

ZIP_MAGIC = b"PK\x03\x04"
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.pth`, `.pt` or `.safetensors` file.

    The content decides the format: torch's zip format, its older one from before torch 1.6,
    safetensors, or a plain pickle of NumPy arrays. Nothing in the file is ever executed, and none
    of its classes is imported.

    Args:
      path: of a file with one state dict, either flat, or under "state_dict", "model" or
        "model_state_dict" in a training checkpoint, whose other entries are ignored, be they
        settings, optimizer states or objects of any class.

    Returns:
      Read-only arrays by name, in the file's order, which for safetensors is that of the bytes.
      They are views of the memory-mapped file: copy them before the file changes. bfloat16 and
      float8 tensors become arrays of `ml_dtypes`, as in JAX.

    Raises:
      FileFormatError: if the file is missing, empty, damaged, or of an unknown format; or if the
        state dict holds what is no dense tensor.
      UnsafeFileError: if the state dict is, or holds, an object of a class that is not needed for
        tensors, such as a pickled model.
    """
    return _read(Path(path), arrays_by_name)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads all that such a file holds, and names what is nested by its keys, joined with dots.

    What is no tensor comes as it is described in the file: counters, settings, and placeholders for
    objects of classes that are not allowed.

    Args:
      path: as for `read_state_dict`.

    Raises:
      FileFormatError: as `read_state_dict`.
      UnsafeFileError: as `read_state_dict`.
    """
    return _read(Path(path), everything_by_name)


def _read(path: Path, collect: Collect) -> dict[str, Any]:
    data = _map(path)
    if data[:4] == ZIP_MAGIC:
        return read_zip(path, data, collect)
    # First, as the length that it begins with may look like any of the others.
    if data[4:9] == b"\0\0\0\0{":
        return _read_safetensors(path, data)
    if is_legacy(data):
        return read_legacy(path, data, collect)
    if other := description(data):
        raise FileFormatError(
            f"{path}: expected a file of torch.save or safetensors, found {other}"
        )
    if is_pickle(data):
        return read_pickle(path, data, collect)
    raise FileFormatError(
        f"{path}: expected a file of torch.save or safetensors, found one that begins with "
        f"{data[:8]!r}. Give the path of a .pth, .pt or .safetensors file."
    )


def _map(path: Path) -> mmap.mmap:
    try:
        # Checked before opening: opening a named pipe would wait until someone writes to it.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if path.is_dir() else "something that is not a regular file"
            raise FileFormatError(
                f"{path}: expected a checkpoint file, found {kind}. Give the path of a .pth, .pt "
                "or .safetensors file."
            )
        if found.st_size == 0:
            raise FileFormatError(
                f"{path}: the file is empty (0 bytes), likely a broken download. Get it again."
            )
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: there is no such file. Check the path.") from error
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be read ({error.strerror}). Check the file's permissions."
        ) from error


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    """Lets the package validate the header, then maps the tensors: its NumPy reader lacks bf16."""
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        with safe_open(path, framework="numpy"):
            pass
        header = json.loads(data[8:start], object_pairs_hook=_without_duplicates)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    header.pop("__metadata__", None)
    if not header:
        raise FileFormatError(
            f"{path}: expected a state dict of tensors by name, found an empty one. Save "
            "model.state_dict()."
        )
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise FileFormatError(
                f"{path}: tensor {name!r} has dtype {entry['dtype']}, expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}. Save it as one of them."
            )
        begin, end = entry["data_offsets"]
        count = (end - begin) // np.dtype(dtype).itemsize
        flat = np.frombuffer(data, dtype, count, start + begin)
        try:
            tensors[name] = flat.reshape(entry["shape"])
        except (ValueError, OverflowError) as error:
            # The package allows what NumPy does not: huge axes in an empty tensor, and many axes.
            raise _damaged(path, f"tensor {name!r}: {error}") from error
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("its header has a name twice")
    return entries


def _damaged(path: Path, what: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: expected a safetensors file, found a damaged one ({what}). Get it again."
    )
