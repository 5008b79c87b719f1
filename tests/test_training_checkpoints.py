"""Checkpoints of training loops, which keep objects of any class beside the weights."""

import argparse
import collections
import dataclasses
import datetime
import enum
import os
import pathlib
import pickle
import warnings

import numpy as np
import pytest
import torch

from importers import read_state_dict
from importers.errors import FileFormatError, UnsafeFileError

EVERY_WAY = [(protocol, zipped) for protocol in range(6) for zipped in (True, False)]
every_way = pytest.mark.parametrize(("protocol", "zipped"), EVERY_WAY, ids=str)
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Color(enum.Enum):
    RED = 1


class Flag(enum.IntFlag):
    A = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    names: tuple[str, ...] = ("a", "b")


class Plain:
    def __init__(self):
        self.path, self.next = pathlib.Path("runs"), self


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, {2, 3}


class Rebuilt:
    def __reduce__(self):
        return Rebuilt, (), {"state": 1}, iter([1, 2]), iter([("k", "v"), ((1, 2), "v")])

    def __setstate__(self, state):
        raise AssertionError("the file was obeyed")

    def append(self, item):
        raise AssertionError("the file was obeyed")

    __init__ = __setitem__ = lambda self, *_: None


class Dict(dict):
    """As configuration libraries have."""


class List(list):
    pass


class Keywords:
    def __new__(cls, *, a):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"a": 1}


class Extended:
    pass


def versioned():
    nested = collections.OrderedDict(a=collections.OrderedDict(b=1))
    nested._metadata = {"version": 2}
    return nested


def optimizer():
    model = torch.nn.Linear(2, 2)
    made = torch.optim.AdamW(model.parameters(), fused=False)
    model(torch.ones(1, 2)).sum().backward()
    made.step()
    return made


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop them; files stay
        return torch._empty_affine_quantized([3], scale=0.1, zero_point=0, dtype=torch.qint8)


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
    "numpy float": np.float64(0.7),
    "numpy arrays": [
        np.arange(3),
        np.zeros(0),
        np.array(["a"]),
        np.array([None, "b"]),
        np.eye(2).T,
    ],
    "numpy dates": np.array(["2020-01-01"], "datetime64[D]"),
    "numpy record": np.zeros(1, [("a", "f4"), ("b", "i2")]),
    "numpy generator": np.random.default_rng(0).bit_generator.state,
    "defaultdict": collections.defaultdict(list, {"a": [1], 3: [2]}),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "chain": collections.ChainMap({"a": 1}, {}),
    "path": pathlib.Path("a") / "b",
    "dates": [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "size": torch.ones(2, 3).shape,
    "devices": [torch.device("cpu"), torch.float32, torch.strided],
    "generator": torch.Generator().get_state(),
    "sets": [{1, (2, 3)}, frozenset({4}), set(), frozenset()],
    "numbers": [1 + 2j, 10**400, -1, 1.5, float("nan"), True, None, 1 << 40],
    "bytes": [b"", b"\xff\x00", bytearray(b"ab"), bytearray(), "ü\n'"],
    "slices": [slice(1, 2), range(3), Ellipsis, NotImplemented, type(None), int, len],
    "enum": [Color.RED, Flag.A, {Color.RED: 1}],
    "keys": {(1, 2): "a", None: 1, 1.5: 2, True: 3, b"b": 4, frozenset({1}): 5, Point(1, 2): 6},
    "versioned": versioned(),
    "named tuple": Point(1, Point(2, 3)),
    "dataclass": Config(),
    "plain": Plain(),
    "slotted": Slotted(),
    "rebuilt": Rebuilt(),
    "dict": Dict(a=1, b=Dict(c=2)),
    "list": List([1, 2]),
    "keywords": Keywords(a=1),
    "module": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)),
    "optimizer": optimizer().state_dict(),
    "whole optimizer": optimizer(),
    "schedule": torch.optim.lr_scheduler.OneCycleLR(optimizer(), 0.1, 10).state_dict(),
    "function": optimizer,
    "storage": torch.ones(2).untyped_storage(),
    "sparse": [torch.eye(2).to_sparse(), torch.ones(2, device="meta")],
    "quantized": quantized(),
}
NOT_OF_OLD = {"slotted": 2, "keywords": 2}
"""The first protocols of pickle that can write them."""


def save(path, value, protocol=2, zipped=True):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(value, path, **options)
    return path


def check_weights(arrays):
    assert list(arrays) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(arrays[name], tensor)


@every_way
@pytest.mark.parametrize("name", OBJECTS)
def test_any_object_may_lie_beside_the_state_dict(tmp_path, name, protocol, zipped):
    if protocol < NOT_OF_OLD.get(name, 0):
        pytest.skip("Python cannot write it so")
    beside = OBJECTS[name]
    value = {"before": beside, "state_dict": WEIGHTS, "after": [beside]}
    check_weights(read_state_dict(save(tmp_path / "t.pth", value, protocol, zipped)))


@every_way
def test_keys_of_the_checkpoint_itself_may_be_objects(tmp_path, protocol, zipped):
    value = {(1, (2, 3)): 1, Color.RED: 2, 7: 3, "model": WEIGHTS}
    check_weights(read_state_dict(save(tmp_path / "t.pth", value, protocol, zipped)))


def test_a_state_dict_may_be_nested_deeper(tmp_path):
    value = {"model": {"state_dict": WEIGHTS, "args": Config()}, "args": Plain()}
    check_weights(read_state_dict(save(tmp_path / "t.pth", value)))


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@every_way
def test_code_beside_the_state_dict_is_not_run(tmp_path, protocol, zipped):
    trace = tmp_path / "ran"
    hidden = {"deep": [(Evil(trace),)], Evil: {Color.RED: Evil(trace)}}
    path = save(tmp_path / "t.pth", {"a": hidden, "model": WEIGHTS}, protocol, zipped)
    check_weights(read_state_dict(path))
    assert not trace.exists()
    if protocol:  # torch cannot read protocol 0
        torch.load(path, weights_only=False)
        assert trace.exists(), "the file runs no code at all"


REFUSED = {
    "an entry": ({"w": torch.ones(1), "x": Plain()}, r"Plain' under key 'x'"),
    "a number": ({"w": torch.ones(1), "x": np.float64(1)}, r"multiarray\.scalar' under key 'x'"),
    "a dict": ({"model": Dict(WEIGHTS), "args": Config(), "epoch": 3}, r"Dict' under key 'model'"),
    "a model": (
        {"args": Plain(), "model": torch.nn.Linear(1, 1), "o": {}},
        "Linear' under key 'mo",
    ),
    "the whole": (Dict(model=WEIGHTS), r"Dict', which is not"),
    "a pickled model": (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear', which"),
}


@every_way
@pytest.mark.parametrize("name", REFUSED)
def test_a_state_dict_that_depends_on_a_class_is_refused_by_its_name(
    tmp_path, name, protocol, zipped
):
    value, message = REFUSED[name]
    with pytest.raises(UnsafeFileError, match=message):
        read_state_dict(save(tmp_path / "t.pth", value, protocol, zipped))


@pytest.mark.parametrize("key", [(1, 2), Color.RED, b"w", frozenset({1})], ids=repr)
def test_a_state_dict_with_other_keys_is_refused(tmp_path, key):
    value = {"model": {key: torch.ones(1), **WEIGHTS}, "args": Config()}
    with pytest.raises(FileFormatError, match=r"the key of type .*, which is not text"):
        read_state_dict(save(tmp_path / "t.pth", value))


def test_an_unknown_place_of_the_weights_is_told(tmp_path):
    value = {"net": WEIGHTS, "args": Config(), "epoch": 3}
    with pytest.raises(FileFormatError, match=r"part under 'net' by itself.*\n.*Config") as caught:
        read_state_dict(save(tmp_path / "t.pth", value))
    assert not isinstance(caught.value, UnsafeFileError)


def test_a_long_list_of_other_entries_is_cut(tmp_path):
    value = {f"entry{i}": 10**5000 for i in range(50)} | WEIGHTS
    with pytest.raises(FileFormatError, match=r"50 other entries:(.*\n){21}  and 30 more"):
        read_state_dict(save(tmp_path / "t.pth", value))


def test_a_plain_pickle_of_tensors_is_told(tmp_path):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(WEIGHTS))
    with pytest.raises(FileFormatError, match=r"'a\.weight' that holds a tensor that pickle wrote"):
        read_state_dict(tmp_path / "t.pkl")
