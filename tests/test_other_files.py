"""Files that hold no state dict are refused for what they are."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch

from importers import load, read_state_dict
from importers.errors import FileFormatError


def torch_script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop it; files stay
        module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
        torch.jit.save(module, path)


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"{}")

    return write


def tarred(*names):
    def write(path):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    return write


def packed(compress):
    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file)
    return lambda path: path.write_bytes(compress(file.getvalue()))


def by_numpy(save):
    file = io.BytesIO()
    save(file, np.ones(2))
    return holds(file.getvalue())


def holds(content):
    return lambda path: path.write_bytes(content)


INDEX = {"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46830571\n"
FILES = {
    "torch script": (torch_script, r"a TorchScript archive.*torch\.jit\.load\(path\)\.state_dict"),
    "torch export": (
        zipped("m/archive_format", "m/models/model.json", "m/data/weights/weight_0"),
        r"torch\.export\. Save torch\.export\.load\(path\)\.state_dict",
    ),
    "old torch export": (
        zipped("serialized_exported_program.json", "serialized_state_dict.pt"),
        r"torch\.export",
    ),
    "keras": (zipped("config.json", "metadata.json", "model.weights.h5"), "a Keras model"),
    "npz": (by_numpy(np.savez), r"dict\(numpy\.load\(path\)\)"),
    "npy": (by_numpy(np.save), "a NumPy file of one array"),
    "hdf5": (holds(b"\x89HDF\r\n\x1a\n" + bytes(64)), r"an HDF5 file.*safetensors\.numpy"),
    "onnx": (holds(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:"), r"an ONNX model\. Give the check"),
    "saved model": (holds(b"\x08\x01\x12\xf5\x0a"), "a TensorFlow SavedModel"),
    "git lfs": (holds(POINTER), "a Git LFS pointer.*`git lfs pull`"),
    "web page": (holds(b"\n<!DOCTYPE html><html>404</html>"), "a web page.*Get it again"),
    "cloud error": (holds(b'<?xml version="1.0"?><Error/>'), "a web page"),
    "index": (
        holds(json.dumps(INDEX, indent=2).encode()),
        "the index of a checkpoint in several files. Read each file",
    ),
    "index in one line": (holds(json.dumps(INDEX).encode()), "the index of a checkpoint"),
    "json": (holds(b'{"abcd":{"a": 1}}'), "JSON text"),
    "gzip": (packed(gzip.compress), "a gzip archive. Unpack it"),
    "bzip2": (packed(bz2.compress), "a bzip2 archive"),
    "xz": (packed(lzma.compress), "an xz archive"),
    "tar": (tarred("resnet/weights.pth"), "a tar archive. Unpack it"),
    "old tar": (tarred("sys_info", "pickle", "tensors", "storages"), "torch's oldest format"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused_for_what_they_are(tmp_path, name):
    write, message = FILES[name]
    write(tmp_path / "weights.pth")
    with pytest.raises(FileFormatError, match=message) as caught:
        load("resnet18", tmp_path / "weights.pth")
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_npz_archive_loads_as_the_message_says(tmp_path):
    np.savez(tmp_path / "a.npz", **{"conv1.weight": np.ones(2)})
    with pytest.raises(FileFormatError, match=r"Pass dict\(numpy\.load\(path\)\)"):
        load("resnet18", tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"conv1\.weight: found float64 of shape \(2,\)"):
        load("resnet18", dict(np.load(tmp_path / "a.npz")))


# The length of the header comes first, and may look like a pickle, a gzip archive, or others.
@pytest.mark.parametrize("length", [0x7B, 0x7D, 0x280, 0x6428, 0x8B1F, 0x120308], ids=hex)
def test_safetensors_read_whatever_the_length_of_their_header(tmp_path, length):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
    (tmp_path / "t").write_bytes(content)
    assert read_state_dict(tmp_path / "t")["w"].tolist() == [0]
