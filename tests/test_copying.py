import mmap

import ml_dtypes
import numpy as np
import pytest

from importers import copying
from importers.copying import copy_to_flax
from importers.layouts import CONV, DENSE, SAME, dense_after_flatten

CASES = [
    (CONV, (37, 5, 3, 3)),
    (DENSE, (37, 23)),
    (dense_after_flatten(4), (37, 4 * 9)),
    (SAME, (37,)),
    (SAME, (1, 7, 11)),
]


@pytest.fixture(params=[256, 1 << 19], ids=["blocks", "whole"])
def block_bytes(request, monkeypatch):
    """Blocks of a few rows, or the whole array at once."""
    monkeypatch.setattr(copying, "BLOCK_BYTES", request.param)


def array_of(shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(("layout", "shape"), CASES)
@pytest.mark.parametrize("dtype", [None, np.float16, np.float64, ml_dtypes.bfloat16])
def test_copies_are_those_of_the_layout(layout, shape, dtype):
    array = array_of(shape)
    copied = copy_to_flax(array, layout, dtype)
    expected = layout.to_flax(array).astype(dtype or array.dtype)
    np.testing.assert_array_equal(copied.array, expected)
    assert copied.array.dtype == expected.dtype
    assert copied.array.flags.c_contiguous
    assert copied.broken == 0
    assert not np.shares_memory(copied.array, array)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(value):
    array = array_of((64, 48))
    array[3, 4] = array[40, :2] = value
    assert copy_to_flax(array, DENSE).broken == 3


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("source", "narrow", "value"), [("f4", "f2", 1e5), ("f8", "f4", 1e39), ("f8", "f2", -1e300)]
)
def test_values_beyond_a_narrower_dtype_are_counted(source, narrow, value):
    array = array_of((64, 48), source)
    array[3, 4] = array[40, 2] = value
    assert copy_to_flax(array, DENSE, narrow).broken == 2
    assert copy_to_flax(array, DENSE).broken == 0


@pytest.mark.usefixtures("block_bytes")
def test_arrays_of_any_strides_are_copied():
    array = array_of((48, 64)).T[::-1]
    np.testing.assert_array_equal(copy_to_flax(array, DENSE).array, array.T)


def test_mapped_files_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "BLOCK_BYTES", 4096)
    array = array_of((300, 100))
    path = tmp_path / "array"
    path.write_bytes(b"12345678" + array.tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapped, np.float32, array.size, 8).reshape(array.shape)
    for _ in range(2):
        np.testing.assert_array_equal(copy_to_flax(view, DENSE).array, array.T)
    np.testing.assert_array_equal(view, array)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_arrays_without_rows_are_copied(shape):
    array = np.ones(shape, np.float32)
    np.testing.assert_array_equal(copy_to_flax(array, SAME).array, array)
