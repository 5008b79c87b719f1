"""Pickles without torch's file format, and those of Python 2."""

import collections
import io
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch

from importers import read_state_dict
from importers.errors import FileFormatError, UnsafeFileError

every_protocol = pytest.mark.parametrize("protocol", range(6))


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, and ordered dicts as pairs."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        self.save_bytes(value.encode())

    def save_bytes(self, value):
        if self.bin:
            self.write(b"T" + len(value).to_bytes(4, "little") + value)
        else:  # Python 3 writes a b before the quotes
            self.write(b"S" + repr(value)[1:].encode() + b"\n")

    def save_ordered_dict(self, value):
        pairs = [list(pair) for pair in value.items()]
        self.save_reduce(collections.OrderedDict, (pairs,), getattr(value, "__dict__", None))

    dispatch[str] = save_str
    dispatch[bytes] = save_bytes
    dispatch[collections.OrderedDict] = save_ordered_dict


class Module:
    """Takes the place of `pickle` in torch.save."""

    Pickler = Python2
    dump = staticmethod(lambda value, file, protocol: Python2(file, protocol).dump(value))


def python2(value, protocol):
    file = io.BytesIO()
    Python2(file, protocol).dump(value)
    return file.getvalue()


ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "high bytes": np.frombuffer(bytes(range(256)), np.uint8),
    "zeros": np.zeros(4, np.int16),
    "quotes": np.frombuffer(b"'\"\\\n\0", np.uint8),
    "scalar": np.array(3),
    "none": np.zeros((0, 3), np.float16),
    "bool": np.array([True, False]),
    "complex": np.array([1j]),
}


def check(arrays):
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable


@every_protocol
def test_a_plain_pickle_of_arrays_reads(tmp_path, protocol):
    value = {"model": ARRAYS, "__author__": "X", "matching_heuristics": True, "set": {1}}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value, protocol))
    check(read_state_dict(tmp_path / "t.pkl"))


@pytest.mark.parametrize("protocol", range(3))
def test_a_plain_pickle_of_python_2_reads(tmp_path, protocol):
    value = {"model": collections.OrderedDict(ARRAYS), "note": b"\xff\xfe", "ü": 1}
    (tmp_path / "t.pkl").write_bytes(python2(value, protocol))
    check(read_state_dict(tmp_path / "t.pkl"))


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_of_python_2_reads(tmp_path, protocol, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    value = {"epoch": 3, "state_dict": model.state_dict(), "arch": b"\xfc", "mean": np.ones(3)}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(value, tmp_path / "t.pth", pickle_module=Module, **options)
    arrays = read_state_dict(tmp_path / "t.pth")
    assert list(arrays) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor)


@every_protocol
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a"]), "an array of dtype 'U1'"),
        (np.array([None]), "an array of dtype 'O8'"),
        (np.ones(2, ">f4"), "a big-endian array"),
    ],
    ids=["text", "objects", "big endian"],
)
def test_arrays_of_other_values_are_refused_for_what_they_are(tmp_path, array, message, protocol):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"w": array}, protocol))
    with pytest.raises(FileFormatError, match=f"key 'w' that holds {message}"):
        read_state_dict(tmp_path / "t.pkl")


class Matrix(np.ndarray):
    pass


@every_protocol
def test_an_array_of_another_class_is_refused_by_its_name(tmp_path, protocol):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"w": np.ones(2).view(Matrix)}, protocol))
    with pytest.raises(UnsafeFileError, match=r"Matrix' under key 'w'"):
        read_state_dict(tmp_path / "t.pkl")
