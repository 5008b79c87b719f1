import numpy as np
import pytest
import torch
from parity import random_network

import importers


@pytest.fixture(scope="module")
def network():
    return random_network("resnet18")


@pytest.fixture(scope="module")
def expected(network):
    return importers.convert("resnet18", network.state_dict())


def test_a_torch_module_is_its_state_dict(network, expected):
    loaded = importers.load("resnet18", torch.nn.DataParallel(network))
    np.testing.assert_equal((loaded.params, loaded.batch_stats), expected)


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
