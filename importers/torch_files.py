"""Read the files that `torch.save` writes, with NumPy alone.

Both formats hold a pickle that describes the tensors, and the raw bytes of the storages that they
are views of. The zip format keeps each storage in an entry of its own; the format from before torch
1.6 appends them to the pickle.
"""

import io
import mmap
import zipfile
from pathlib import Path
from typing import Any

from importers.errors import FileFormatError
from importers.other_files import zip_of_another_kind
from importers.pickled_arrays import Collect
from importers.pickles import Unpickler, damaged
from importers.placeholders import Storage

__all__ = ["is_legacy", "is_pickle", "read_legacy", "read_pickle", "read_zip"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LOCAL_HEADER = 30  # bytes before the name in a zip entry's local header

Data = mmap.mmap


def is_legacy(data: Data) -> bool:
    """Whether a file begins as `torch.save` did before torch 1.6."""
    if data[:1] == b"\x80":
        return LEGACY_MAGIC.to_bytes(10, "little") in data[:32]
    return data[:32].startswith(b"L%dL\n." % LEGACY_MAGIC)  # in pickle protocol 0 or 1


def is_pickle(data: Data) -> bool:
    """Whether a file is a plain pickle, most likely of a dict."""
    begins = data[:1] == b"\x80" and data[1:2] <= b"\x05"
    return begins or data[:32].startswith((b"(d", b"}", b"ccollections\nOrderedDict\n"))


def read_zip(path: Path, data: Data, collect: Collect) -> dict[str, Any]:
    """Reads torch's zip format.

    Args:
      path: of the file, for errors.
      data: its content.
      collect: makes arrays of what its pickle describes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, str(error)) from error
    names = [entry.filename for entry in entries]
    if other := zip_of_another_kind(names):
        raise FileFormatError(f"{path}: expected a file of torch.save, found {other}")
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
    return collect(path, data, Unpickler(description, path).load(), locate)


def read_legacy(path: Path, data: Data, collect: Collect) -> dict[str, Any]:
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
            # Not shown: the text of a hostile key may be longer than memory.
            raise damaged(path, "a storage belongs to no tensor of a known type")
        count = int.from_bytes(data[offset : offset + 8], "little")
        places[key] = (offset + 8, count * storage.dtype.itemsize)
        offset = sum(places[key])

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise damaged(path, f"storage {storage.key!r} is missing")
        return places[storage.key]

    return collect(path, data, tensors, locate)


def read_pickle(path: Path, data: Data, collect: Collect) -> dict[str, Any]:
    """Reads a plain pickle of NumPy arrays; see `read_zip`."""

    def locate(storage: Storage) -> tuple[int, int]:
        raise damaged(path, f"storage {storage.key!r} is missing")

    data.seek(0)
    return collect(path, data, Unpickler(data, path).load(), locate)


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


def _big_endian(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path}: expected little-endian data, found a file from a big-endian machine. Save it "
        "again on a little-endian one."
    )
