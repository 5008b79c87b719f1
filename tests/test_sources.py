import numpy as np
import pytest
import torch
from parity import random_network

import importers
from importers.wrappers import unwrap


@pytest.fixture(scope="module")
def network():
    return random_network("resnet18")


@pytest.fixture(scope="module")
def expected(network):
    return importers.convert("resnet18", network.state_dict())


def prefixed(prefix, state_dict):
    return {prefix + key: tensor for key, tensor in state_dict.items()}


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1, "steps": [1, 2]}},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: {"model": prefixed("_orig_mod.module.", state)},
    "lightning": lambda state: {"epoch": 3, "state_dict": prefixed("net.", state)},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_checkpoints_of_training_loops_are_unwrapped(tmp_path, network, expected, wrap, zipped):
    checkpoint = WRAPPED[wrap](network.state_dict())
    torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    loaded = importers.load("resnet18", tmp_path / "c.pt")
    np.testing.assert_equal((loaded.params, loaded.batch_stats), expected)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_mappings_are_unwrapped_alike(network, expected, wrap):
    loaded = importers.load("resnet18", WRAPPED[wrap](network.state_dict()))
    np.testing.assert_equal((loaded.params, loaded.batch_stats), expected)


def test_a_torch_module_is_its_state_dict(network, expected):
    loaded = importers.load("resnet18", torch.nn.DataParallel(network))
    np.testing.assert_equal((loaded.params, loaded.batch_stats), expected)


@pytest.mark.parametrize(
    "state_dict", [{}, {"module.a": 1, "b": 2}, {"model": 3}, {"model": {}}, {"a.module.b": 1}]
)
def test_what_is_not_wrapped_stays(state_dict):
    assert unwrap(state_dict) == state_dict


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="are of type int, expected the path"):
        importers.load("resnet18", 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_key(network, value):
    state_dict = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state_dict["fc.bias"][3] = value
    state_dict["layer1.0.bn1.running_var"][:2] = value
    with pytest.raises(importers.StateDictError) as error:
        importers.load("resnet18", state_dict)
    assert "fc.bias: 1 of 10 values" in str(error.value)
    assert "layer1.0.bn1.running_var: 2 of 64 values" in str(error.value)
