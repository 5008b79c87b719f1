"""`importers.convert` on state dicts of NumPy arrays, without a file or torch."""

import jax
import ml_dtypes
import numpy as np
import pytest

import importers
from importers.conversion import shapes_of
from importers.layouts import CONV, DENSE


@pytest.fixture(scope="module")
def state_dict():
    generator = np.random.default_rng(0)
    shapes = shapes_of("shufflenet_v2_x0_5")
    return {key: generator.standard_normal(shape, np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [None, np.float16, np.float64, ml_dtypes.bfloat16])
def test_parameters_are_contiguous_copies_in_the_dtype_asked_for(state_dict, dtype):
    params, stats = importers.convert("shufflenet_v2_x0_5", state_dict, param_dtype=dtype)
    dtype = np.dtype(dtype or np.float32)
    for key, leaf, layout in (
        ("conv1.0.weight", params["conv1.0"]["kernel"], CONV),
        ("fc.weight", params["fc"]["kernel"], DENSE),
    ):
        expected = layout.to_flax(state_dict[key]).astype(dtype)
        np.testing.assert_array_equal(leaf, expected)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == dtype
        assert leaf.flags.c_contiguous
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {np.dtype(np.float32)}


def test_nothing_is_shared_with_the_state_dict(state_dict):
    params, _ = importers.convert("shufflenet_v2_x0_5", state_dict)
    assert not np.shares_memory(params["fc"]["bias"], state_dict["fc.bias"])
    assert params["fc"]["bias"].flags.writeable


def test_arrays_of_any_strides_convert(state_dict):
    strided = {**state_dict, "fc.weight": np.asfortranarray(state_dict["fc.weight"])[::-1]}
    params, _ = importers.convert("shufflenet_v2_x0_5", strided)
    np.testing.assert_array_equal(params["fc"]["kernel"], state_dict["fc.weight"][::-1].T)


def test_values_beyond_a_narrower_dtype_are_reported(state_dict):
    large = {**state_dict, "fc.bias": state_dict["fc.bias"].copy()}
    large["fc.bias"][[3, 5]] = 1e5
    importers.convert("shufflenet_v2_x0_5", large)
    with pytest.raises(importers.StateDictError, match=r"fc\.bias: 2 of 1000 values are too large"):
        importers.convert("shufflenet_v2_x0_5", large, param_dtype=np.float16)
