import collections
import io
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch

from importers import CheckpointError, read_state_dict
from importers.errors import FileFormatError, UnsafeFileError


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


def rezip(path, change):
    """Writes a zip checkpoint anew with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, how in change(entries):
            archive.writestr(name, content, compress_type=how)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: [(n, c, zipfile.ZIP_DEFLATED) for n, c in e.items()], "compressed"),
        (lambda e: [(n, c, 0) for n, c in e.items() if "data/0" not in n], "'0' is missing"),
        (lambda e: [(n, c[:4] if "data/0" in n else c, 0) for n, c in e.items()], "1 are there"),
        (lambda e: [(n, b"big" if "order" in n else c, 0) for n, c in e.items()], "big-endian"),
        (lambda e: [(n, c, 0) for n, c in e.items()] * 2, "data.pkl"),
        (lambda e: [("readme", b"", 0)], "0 of them called data.pkl"),
    ],
    ids=["deflated", "missing", "short", "endian", "duplicate", "other"],
)
def test_damaged_archives_are_refused(tmp_path, change, message):
    path = save(tmp_path / "t.pth", {"w": torch.ones(100)})
    rezip(path, change)
    with pytest.raises(FileFormatError, match=message):
        read_state_dict(path)


def test_a_zip_bomb_is_refused_without_unpacking_it(tmp_path):
    path = tmp_path / "t.pth"
    size = 1 << 28
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", bytes(size))
    assert path.stat().st_size < size // 100
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=r"'a/data\.pkl' is compressed"):
        read_state_dict(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def craft(tmp_path, arguments, count=4):
    """A zip checkpoint whose one tensor is described by hand."""
    buffer = io.BytesIO()

    class Rebuild:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Held(),
                *arguments,
                False,
                collections.OrderedDict(),
            )

    class Held:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Held):
                return ("storage", torch.FloatStorage, "0", "cpu", count)
            return None

    pickler = Pickler(buffer, protocol=2)
    pickler.dump({"w": Rebuild()})
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        archive.writestr("a/data/0", bytes(16))
    return path


def test_a_hand_made_tensor_reads(tmp_path):
    assert read_state_dict(craft(tmp_path, (0, (2, 2), (2, 1))))["w"].shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((1, (2, 2), (2, 1)), 4),
        ((0, (2, 2), (3, 1)), 4),
        ((-1, (2,), (1,)), 4),
        ((0, (2,), (-1,)), 4),
        ((0, (2, 2), (1,)), 4),
        ((0, (1 << 40,), (0,)), 4),
        ((0, (1,) * 40, (1,) * 40), 4),
        ((0, (2,), (1,)), 1 << 40),
        ((0, (True,), (1,)), 4),
        ((0, (0, 1 << 61, 1 << 61), (1, 1, 1)), 4),
        ((0, (2,), (1,)), 3),
    ],
    ids=["offset", "strides", "negative", "backwards", "axes", "repeated", "deep", "long", "bool",
         "vast", "short"],
)  # fmt: skip
def test_tensors_outside_their_storage_are_refused(tmp_path, arguments, count):
    with pytest.raises(FileFormatError, match="damaged"):
        read_state_dict(craft(tmp_path, arguments, count))


HOSTILE = {
    "memo slot beyond memory": b"\x80\x02}r\xff\xff\xff\x7f.",
    "nested beyond recursion": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "key that takes forever to hash": b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor\n}X\x01\0\0\0aNsb.",
    "key twice": b"\x80\x02}(X\x01\0\0\0aNX\x01\0\0\0aNu.",
    "made by class": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "nothing": b"\x80\x02.",
    "no end": b"\x80\x02}",
    "very long text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "unknown instruction": b"\x80\x02\xfe.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_at_once(tmp_path, name):
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HOSTILE[name])
    with pytest.raises(CheckpointError):
        read_state_dict(path)


def test_a_key_twice_is_told(tmp_path):
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HOSTILE["key twice"])
    with pytest.raises(FileFormatError, match="the key 'a' twice"):
        read_state_dict(path)


def test_the_stride_of_a_single_element_does_not_matter(tmp_path):
    assert read_state_dict(craft(tmp_path, (3, (1, 1), (1 << 61, 7))))["w"].tolist() == [[0.0]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_any_protocol_of_pickle_reads(tmp_path, protocol, zipped):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    path = save(tmp_path / "t.pth", {"w": torch.arange(3.0)}, **options)
    assert read_state_dict(path)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("lie", [0, 1, 3, 1 << 40, (1 << 64) - 1])
def test_a_wrong_length_in_the_old_format_never_shifts_the_tensors(tmp_path, lie):
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    path = save(tmp_path / "t.pth", state, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    start = len(content) - 2 * (8 + 8)  # two storages: a count, then two floats
    assert content[start : start + 8] == struct.pack("<Q", 2)
    path.write_bytes(content[:start] + struct.pack("<Q", lie) + content[start + 8 :] + bytes(64))
    with pytest.raises(FileFormatError, match=r"needs 2 elements|belongs to no tensor"):
        read_state_dict(path)


@pytest.mark.parametrize("key", [1, None, 1.5, True], ids=repr)
def test_keys_that_are_no_text_are_refused(tmp_path, key):
    path = save(tmp_path / "t.pth", {key: torch.ones(1), "1": torch.zeros(1)})
    with pytest.raises(FileFormatError, match=f"the key {key!r}, which is not text"):
        read_state_dict(path)


def test_an_entry_outside_the_archives_folder_replaces_no_storage(tmp_path):
    path = save(tmp_path / "t.pth", {"w": torch.ones(4)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data/0", bytes(16))
    assert read_state_dict(path)["w"].tolist() == [1, 1, 1, 1]


def test_an_archive_that_claims_to_begin_before_its_file_is_refused(tmp_path):
    path = craft(tmp_path, (0, (4,), (1,)))
    content = path.read_bytes()
    place = content.rindex(b"PK\x05\x06") + 16
    start = int.from_bytes(content[place : place + 4], "little")
    # Counted from the end, as negative indices are, the last one lands on a header again.
    for shift in range(1, len(content) + 1):
        moved = (start + shift).to_bytes(4, "little")
        path.write_bytes(content[:place] + moved + content[place + 4 :])
        with pytest.raises(FileFormatError, match="damaged"):
            read_state_dict(path)


def test_a_refused_name_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c\x1b[2J" + b"x" * 10_000 + b"\nname\n.")
    with pytest.raises(UnsafeFileError) as caught:
        read_state_dict(path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1_000 + len(str(path))


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00X\x05\0\0\0modelh\x00s.")
    with pytest.raises(FileFormatError, match="key 'model' that holds dict"):
        read_state_dict(path)


ATTACKS = {
    "by a system call": b"cos\nsystem\nX\x02\0\0\0ls\x85R.",
    "by a builtin": b"cbuiltins\neval\nX\x01\0\0\x001\x85R.",
    "by torch itself": b"ctorch\nload\nX\x01\0\0\0x\x85R.",
    "through a module of an allowed name": b"ctorch._utils\nos.system\nX\x02\0\0\0ls\x85R.",
    "by the old instruction": b"(X\x02\0\0\0lsios\nsystem\n.",
    "by an object instruction": b"(cos\nsystem\nX\x02\0\0\0lso.",
    "by an extension code": b"\x82\x01.",
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_but_the_allowed_names_is_called(tmp_path, monkeypatch, name, protocol):
    def fail(*_):
        raise AssertionError("the file was obeyed")

    monkeypatch.setattr("os.system", fail)
    monkeypatch.setattr("builtins.eval", fail)
    monkeypatch.setattr("torch.load", fail)
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80" + bytes([protocol]) + ATTACKS[name])
    with pytest.raises(CheckpointError):
        read_state_dict(path)
