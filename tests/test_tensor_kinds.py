"""Tensors of every kind that torch has: read, or refused for what they are."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

import importers
from importers import read_state_dict
from importers.errors import FileFormatError, UnsafeFileError
from importers.torch_tensors import array_of

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
every_float8 = pytest.mark.parametrize("dtype", FLOAT8)
BYTES = torch.arange(256, dtype=torch.int64).to(torch.uint8)


class Named(torch.Tensor):
    pass


def with_attributes(tensor):
    tensor.note = {"a": 1}
    return tensor


def made(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch calls beta, or will drop
        return make()


def save(path, value, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def float8(dtype):
    """All its values, in rows that are not in the order of memory."""
    return BYTES.view(getattr(torch, dtype)).reshape(4, 64).t()


@both_formats
@every_float8
def test_float8_in_files_of_torch(tmp_path, dtype, zipped):
    value = {"a": torch.ones(3), "w": float8(dtype), "part": float8(dtype)[5:]}
    arrays = read_state_dict(save(tmp_path / "t.pth", value, zipped))
    assert arrays["w"].dtype == getattr(ml_dtypes, dtype)
    np.testing.assert_array_equal(arrays["w"].view(np.uint8), BYTES.reshape(4, 64).t())
    np.testing.assert_array_equal(arrays["w"].astype(np.float32), value["w"].float())
    np.testing.assert_array_equal(arrays["part"].astype(np.float32), value["part"].float())


@pytest.mark.parametrize("dtype", FLOAT8[:4])
def test_float8_in_safetensors(tmp_path, dtype):
    tensor = float8(dtype).contiguous()
    safetensors.torch.save_file({"w": tensor}, tmp_path / "t")
    array = read_state_dict(tmp_path / "t")["w"]
    assert array.dtype == getattr(ml_dtypes, dtype)
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float())


@every_float8
def test_float8_in_memory(dtype):
    array = array_of(float8(dtype))
    assert array.dtype == getattr(ml_dtypes, dtype)
    np.testing.assert_array_equal(array.astype(np.float32), float8(dtype).float())


OTHER_DTYPES = ["uint16", "uint32", "uint64", "complex64", "complex128"]


@both_formats
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_unsigned_and_complex_tensors_read(tmp_path, dtype, zipped):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    path = save(tmp_path / "t.pth", {"w": tensor, "t": tensor.t(), "f": torch.ones(1)}, zipped)
    arrays = read_state_dict(path)
    assert arrays["w"].dtype == arrays["t"].dtype == dtype
    np.testing.assert_array_equal(arrays["w"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(arrays["t"], np.arange(6).reshape(2, 3).T)


def test_complex_safetensors_read(tmp_path):
    tensor = torch.tensor([1 + 2j])
    safetensors.torch.save_file({"w": tensor}, tmp_path / "t")
    assert read_state_dict(tmp_path / "t")["w"] == [1 + 2j]


class Call:
    """What torch writes for tensors of devices and classes that are not at hand here."""

    def __init__(self, name, *arguments):
        self.call = getattr(torch._utils, name), arguments

    def __reduce__(self):
        return self.call


CPU = torch.ones(2), torch.float32, "xla:0", False
WRAPPER = torch.float32, (2,), (1,), 0, torch.strided, "cpu", False
CALLS = {
    "numpy": (("_rebuild_device_tensor_from_numpy", np.ones(2), *CPU[1:]), "as another device"),
    "xla": (("_rebuild_xla_tensor", np.ones(2), *CPU[1:]), r"another device.* Use tensor\.cpu\(\)"),
    "dtype": (
        ("_rebuild_device_tensor_from_cpu_tensor", CPU[0], torch.int8, *CPU[2:]),
        "another d",
    ),
    "wrapper": (("_rebuild_wrapper_subclass", Named, *WRAPPER), r"Use tensor\.full_tensor\(\)"),
}


@both_formats
@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_other_devices_are_refused_for_what_they_are(tmp_path, name, zipped):
    call, message = CALLS[name]
    path = save(tmp_path / "t.pth", {"w": Call(*call)}, zipped)
    with pytest.raises(FileFormatError, match=f"key 'w' that holds.*{message}"):
        read_state_dict(path)


READ = {
    "other device": lambda: Call("_rebuild_device_tensor_from_cpu_tensor", *CPU),
    "parameter with attributes": lambda: with_attributes(torch.nn.Parameter(torch.ones(2))),
    "tensor with attributes": lambda: with_attributes(torch.ones(2)),
    "buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "numpy": lambda: np.ones(2),
}


@both_formats
@pytest.mark.parametrize("name", READ)
def test_tensors_with_attributes_read(tmp_path, name, zipped):
    path = save(tmp_path / "t.pth", {"w": READ[name]()}, zipped)
    assert read_state_dict(path)["w"].tolist() == [1, 1]


REFUSED = {
    "sparse": (lambda: torch.eye(2).to_sparse(), r"a sparse tensor.* Use tensor\.to_dense\(\)"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), "a sparse tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "on the meta device, without values"),
    "quantized": (
        lambda: torch._empty_affine_quantized([2], scale=0.1, zero_point=0, dtype=torch.qint8),
        r"a quantized tensor.* Use tensor\.dequantize\(\)",
    ),
    "quantized channels": (
        lambda: torch._empty_per_channel_affine_quantized(
            [2, 2], scales=torch.ones(2), zero_points=torch.zeros(2), axis=0, dtype=torch.qint32
        ),
        "a quantized tensor",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        r"a nested tensor.* Use the tensors of tensor\.unbind\(\)",
    ),
    "half complex": (lambda: torch.ones(2).to(torch.complex32), r"complex32.* Use tensor\.float"),
    "lazy": (
        lambda: torch.nn.LazyLinear(2).state_dict()["weight"],
        r"an uninitialized parameter.* Run the model once",
    ),
}


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in"])
@both_formats
@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_for_what_they_are_but_may_lie_beside(
    tmp_path, name, zipped, beside
):
    make, message = REFUSED[name]
    weights, other = {"a": torch.ones(2), "b": torch.zeros(2)}, made(make)
    if beside:
        path = save(tmp_path / "t.pth", {"x": other, "model": weights}, zipped)
        assert read_state_dict(path)["b"].tolist() == [0, 0]
    else:
        path = save(tmp_path / "t.pth", {"x": other, **weights}, zipped)
        with pytest.raises(FileFormatError, match=f"key 'x' that holds.*{message}"):
            read_state_dict(path)


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_in_memory_are_refused_for_what_they_are(name):
    make, message = REFUSED[name]
    with pytest.raises(importers.StateDictError, match=message) as caught:
        importers.convert("resnet18", {"conv1.weight": made(make)})
    assert "'conv1.weight'" in str(caught.value)


FLIPPED = torch.tensor([1 + 2j, 3 - 4j]).conj()


@both_formats
@pytest.mark.parametrize("view", [FLIPPED, FLIPPED.imag], ids=["conjugate", "negative"])
def test_a_view_that_flips_signs_is_not_read_without_them(tmp_path, view, zipped):
    path = save(tmp_path / "t.pth", {"w": view}, zipped)
    with pytest.raises(FileFormatError, match=r"'w' that holds a conjugated or negated view"):
        read_state_dict(path)
    array = array_of(view)
    np.testing.assert_array_equal(array, view.resolve_conj().resolve_neg())


@both_formats
def test_a_tensor_of_another_class_is_refused_by_its_name(tmp_path, zipped):
    path = save(tmp_path / "t.pth", {"w": torch.ones(2).as_subclass(Named)}, zipped)
    with pytest.raises(UnsafeFileError, match=r"\.Named' under key 'w'"):
        read_state_dict(path)
