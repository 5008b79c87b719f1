"""Pickles that try to run code, or to fill memory or time, among them those of a few bytes."""

import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from importers import CheckpointError, read_state_dict
from importers.errors import FileFormatError

MANY = 100_000
KEPT = b"r\0\0\0\1"  # into the memo, as number 2**24
AGAIN = b"j\0\0\0\1"
PRIME = (1 << 61) - 1  # all its multiples hash to 0


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value


def number(value):
    content = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(content)]) + content


def doubled(times):
    """A tuple of a tuple of a tuple, each twice."""
    return b"N" + b"q\0h\0\x86" * times


LONG = b"(" + b"N" * MANY + b"t" + KEPT
TEXT = text(b"a" * MANY) + KEPT
STORAGE = (
    b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x01tQ"
)
EVERYWHERE = b"}(" + b"".join(text(b"%d" % i) + AGAIN for i in range(MANY)) + b"u"
PAIRS = b"(" + b"".join(b"(" + text(b"%d" % i) + b"Nl" for i in range(2_000)) + b"l" + KEPT
PART = b"(" + b"".join(text(b"%d" % i) + b"N" for i in range(2_000)) + b"d" + KEPT
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DTYPE = b"cnumpy\ndtype\nX\x02\0\0\0u1\x89\x88\x87R"
ENCODED = b"c_codecs\nencode\n" + AGAIN + text(b"latin1") + b"\x86R"
CALLS = (
    b"ctorch._tensor\n_rebuild_from_type_v2\nq\1ctorch\nTensor\nq\3(cx\ny\nNNNtq\2"
    + b"0(h\1h\3h\2Ntq\2" * 700
)
SLOW = {
    "tuple that takes forever to hash": b"}" + doubled(60) + b"Ns",
    "tuple that takes forever to show": b"}" + text(b"w") + doubled(60) + b"s",
    "long arguments": LONG + (b"0" + REBUILD + AGAIN + b"R") * MANY,
    "long arguments of a class": LONG + (b"0cx\ny\n" + AGAIN + b"R") * MANY,
    "long persistent id": LONG + (b"0" + AGAIN + b"Q") * MANY,
    "long text for an id": TEXT + (b"0" + AGAIN + b"Q") * MANY,
    "long names": TEXT + (b"0" + AGAIN + AGAIN + b"\x93") * MANY,
    "long list of pairs": PAIRS + (b"0ccollections\nOrderedDict\n" + AGAIN + b"\x85R") * 10_000,
    "long text to show": TEXT + EVERYWHERE,
    "long dict to search": PART + EVERYWHERE,
    "keys that collide": b"}(" + b"".join(number(i * PRIME) + b"N" for i in range(50_000)) + b"u",
    "slots that collide": b"N" + b"".join(b"p%d\n" % (i * PRIME) for i in range(50_000)),
    "frames in frames": b"\x95" + b"\xff" * 6 + b"\0\0" + b"N\x95\1\0\0\0\0\0\0\0N" * 1000,
    "long number": b"}" + number(1 << 1900) + b"Ns",
    "long digits": b"I" + b"9" * 10_000_000 + b"\n",
    "calls in calls": CALLS + (b"0h\1h\2R") * MANY,
}  # fmt: skip


def write_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04" + content + b".")
    return path


@pytest.mark.parametrize("name", SLOW)
def test_no_pickle_takes_longer_than_it_is_long(tmp_path, name):
    path = write_zip(tmp_path / "t.pth", SLOW[name])
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read_state_dict(path)
    assert time.process_time() - start < 10


def test_a_list_of_storages_that_takes_forever_to_show_is_refused(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "t.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "t.pth").read_bytes()
    start = content.rindex(b"\x80\x02]")
    (tmp_path / "t.pth").write_bytes(content[:start] + b"\x80\x02]" + doubled(60) + b"a.")
    with pytest.raises(FileFormatError, match="belongs to no tensor"):
        read_state_dict(tmp_path / "t.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"\x96" + (1 << 33).to_bytes(8, "little"),
        b"\x8e" + (1 << 33).to_bytes(8, "little"),
        b"\x95" + (1 << 33).to_bytes(8, "little"),
        b"r\xff\xff\xff\x7f",
        b"c__builtin__\nbytes\n" + number(1 << 33) + b"\x85R",
        b"cbuiltins\nbytearray\n" + number(1 << 33) + b"\x85R",
        b"cnumpy._core.numeric\n_frombuffer\n(C\0" + DTYPE + number(1 << 33) + b"\x85X\1\0\0\0CtR",
    ],
    ids=["bytearray", "bytes", "frame", "memo", "empty bytes", "class", "array"],
)
def test_a_large_number_makes_no_room_in_memory(tmp_path, content):
    path = write_zip(tmp_path / "t.pth", b"N" + content)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_state_dict(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_text_that_is_encoded_again_and_again_does_not_fill_memory(tmp_path):
    path = write_zip(tmp_path / "t.pth", TEXT + b"(" + ENCODED * 1000 + b"l")
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="more text to encode than the file holds"):
        read_state_dict(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * MANY
    tracemalloc.stop()


CHANGED = {
    "a call of a tensor": STORAGE + b")R",
    "items of a number": b"K\1(NNu",
    "items of a tuple": b"(NN\x86NNu",
    "an item of text": text(b"a") + b"NNs",
    "values of a dict": b"}(Ne",
    "a value of a dict": b"}Na",
    "members of a list": b"](N\x90",
    "attributes of a list": b"]Nb",
    "an instance of a function": REBUILD + b")\x81",
    "an instance of a function, with names": REBUILD + b")}\x92",
    "an instance of a dtype": b"(ctorch\nFloatStorage\no",
    "an instance of a dict": b"(icollections\nOrderedDict\n",
    "a dict of an odd number": b"(NNNd",
    "a dict of one list": b"ccollections\nOrderedDict\n(]ltR",
    "a tensor of a dict": REBUILD + b"(}K\0))\x89NtR",
    "a tensor without dtype": b"ctorch._utils\n_rebuild_tensor_v3\n(NK\0))\x89NNtR",
    "a text with unknown escapes": b"S'\\d'\n",
    "a text without quotes": b"S'\n",
    "an extension": b"\x82\x01",
    "a buffer outside": b"\x97",
    "an array of text": b"cnumpy._core.numeric\n_frombuffer\n(K\1" + DTYPE + b")X\1\0\0\0CtR",
    "an array of no class": b"cnumpy.core.multiarray\n_reconstruct\n(N)NtR",
    "an array of few parts": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)NtRNb",
    "an encoding": b"c_codecs\nencode\n" + text(b"a") + text(b"rot13") + b"\x86R",
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_no_pickler_writes_is_damage(tmp_path, name):
    with pytest.raises(FileFormatError, match="damaged"):
        read_state_dict(write_zip(tmp_path / "t.pth", CHANGED[name]))


def test_an_array_of_more_values_than_it_has_is_refused(tmp_path):
    content = pickle.dumps({"w": np.ones(3, np.uint8)}, protocol=2)
    assert content.count(b"K\x03\x85") == 1
    (tmp_path / "t.pkl").write_bytes(content.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(FileFormatError, match="an array of 3 values, not 4"):
        read_state_dict(tmp_path / "t.pkl")
