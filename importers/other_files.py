"""What files are that hold no state dict, by their content, and what to do with them."""

import mmap
from collections.abc import Collection

__all__ = ["description", "zip_of_another_kind"]

UNPACK = "Unpack it, and give the path of the checkpoint in it."
EXPORT = (
    "Give the checkpoint of the torch model that it came from, or write its weights, under torch's "
    "names, with safetensors.numpy.save_file."
)
MAGIC = {
    b"version https://git-lfs": (
        "a Git LFS pointer, which only names the checkpoint. Fetch the file itself with "
        "`git lfs pull`."
    ),
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras and TensorFlow write. {EXPORT}",
    b"\x93NUMPY": f"a NumPy file of one array. {EXPORT}",
    b"\x1f\x8b": f"a gzip archive. {UNPACK}",
    b"BZh": f"a bzip2 archive. {UNPACK}",
    b"\xfd7zXZ\x00": f"an xz archive. {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"a zstd archive. {UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive. {UNPACK}",
    b"GGUF": f"a GGUF file. {EXPORT}",
    b"\x08\x01\x12": f"a TensorFlow SavedModel. {EXPORT}",
    **{
        bytes([0x08, version, field]): f"an ONNX model. {EXPORT}"
        for version in range(3, 32)
        for field in (0x12, 0x3A, 0x42)  # the producer, the graph, or the operators, come next
    },
}
"""How files begin, and what they are then."""

TAR_AT = 257  # where a tar archive has its magic bytes
MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def description(data: mmap.mmap) -> str:
    """What a file is, and what to do; empty for one that may be a checkpoint.

    Args:
      data: its content.
    """
    head = data[:512]
    for magic, found in MAGIC.items():
        if head.startswith(magic):
            return found
    if head.lstrip().lower().startswith(MARKUP):
        return "a web page, likely an error that was saved in place of a download. Get it again."
    if head[TAR_AT : TAR_AT + 5] == b"ustar":
        return _tar(head)
    return _json(data) if head.startswith(b"{") else ""


def zip_of_another_kind(names: Collection[str]) -> str:
    """What a zip archive is that holds no file of `torch.save`, and what to do; often nothing.

    Args:
      names: of its entries.
    """
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return (
            "a TorchScript archive of torch.jit.save. Save torch.jit.load(path).state_dict() with "
            "torch.save."
        )
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return (
            "an archive of torch.export. Save torch.export.load(path).state_dict with torch.save."
        )
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz archive of NumPy arrays. Pass dict(numpy.load(path)) in place of the path."
    if "model.weights.h5" in ends:
        return f"a Keras model. {EXPORT}"
    return ""


def _tar(head: bytes) -> str:
    if head.startswith(b"sys_info\0"):
        return (
            "a tar archive in torch's oldest format. Load it with torch.load, if you trust it, and "
            "save its state dict again."
        )
    return f"a tar archive. {UNPACK}"


def _json(data: mmap.mmap) -> str:
    if data.find(b'"weight_map"') >= 0:
        return (
            "the index of a checkpoint in several files. Read each file that it names with "
            "importers.read_state_dict, and pass all their arrays in one dict."
        )
    return "JSON text. Give the path of a .pth, .pt or .safetensors file."
