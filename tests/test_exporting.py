import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from helpers import import_torchvision
from parity import random_network

import importers
from tlv_jax.errors import OptionError


@pytest.fixture(scope="module")
def variables():
    return importers.convert("resnet18", random_network("resnet18").state_dict())


def same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, actual) == jax.tree.map(
        lambda leaf: leaf.dtype, expected
    )


NAMES = import_torchvision().models.list_models(module=import_torchvision().models)
# Every kind of leaf, layout, constant and buffer is among these.
QUICK = ("vit_b_32", "swin_v2_t", "googlenet", "mnasnet0_5")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_torch_loads_it_strictly_and_nothing_changes(name):
    network = random_network(name)
    state_dict = network.state_dict()
    exported = importers.export(name, *importers.convert(name, state_dict))
    assert network.load_state_dict(exported, strict=True).missing_keys == []
    assert exported.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        assert torch.equal(exported[key], tensor), key
    same_bits(importers.convert(name, exported), importers.convert(name, state_dict))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_safetensors_hold_the_same_bits(tmp_path, variables, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables[0])
    importers.write_safetensors(tmp_path / "t.safetensors", "resnet18", params, variables[1])
    read = importers.convert("resnet18", importers.read_state_dict(tmp_path / "t.safetensors"))
    same_bits(read, (params, variables[1]))
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


def test_bfloat16_becomes_torch_bfloat16(variables):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables[0])
    exported = importers.export("resnet18", params, variables[1])
    assert exported["fc.weight"].dtype == torch.bfloat16
    expected = params["fc"]["kernel"].astype(np.float32).T
    np.testing.assert_array_equal(exported["fc.weight"].float(), expected)


def test_device_arrays_and_frozen_dicts_are_taken(variables):
    params, stats = (FrozenDict(jax.device_put(tree)) for tree in variables)
    exported = importers.export("resnet18", params, stats)
    exported["fc.bias"].zero_()
    assert np.any(params["fc"]["bias"] != 0)


def test_every_problem_is_listed(variables):
    params, stats = (dict(tree) for tree in variables)
    params["fc"] = {"kernel": np.zeros((512, 10, 1), np.float32)}
    params["extra"] = {"bias": np.zeros(3, np.float32)}
    del stats["bn1"]
    with pytest.raises(importers.StateDictError) as error:
        importers.export("resnet18", params, stats)
    for line in (
        "fc.bias: found nothing",
        "fc.weight: found float32 of shape (512, 10, 1)",
        "extra.bias: found float32 of shape (3,), expected no such key",
        "bn1.running_mean: found nothing",
        "bn1.running_var: found nothing",
    ):
        assert line in str(error.value)


def test_statistics_among_the_parameters_are_refused(variables):
    params, stats = (dict(tree) for tree in variables)
    params["bn1"] = {**params["bn1"], "mean": stats["bn1"]["mean"]}
    stats["bn1"] = {"var": stats["bn1"]["var"]}
    with pytest.raises(importers.StateDictError, match="expected batch_stats/bn1/mean"):
        importers.export("resnet18", params, stats)


def test_unknown_names_are_refused(variables):
    with pytest.raises(OptionError, match="resnet18"):
        importers.export("resnet17", *variables)


def test_a_failed_write_leaves_the_old_file(tmp_path, variables):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(importers.StateDictError):
        importers.write_safetensors(path, "resnet34", *variables)
    assert path.read_bytes() == b"old"


def test_a_write_that_breaks_off_leaves_the_old_file_alone(tmp_path, variables, monkeypatch):
    def fill_the_disk(tensors, path, **settings):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("importers.exporting.save_file", fill_the_disk)
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left.*t\.safetensors'$"):
        importers.write_safetensors(path, "resnet18", *variables)
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"old")]


def test_writing_needs_no_torch(tmp_path, variables):
    source = tmp_path / "source.safetensors"
    importers.write_safetensors(source, "resnet18", *variables)
    code = (
        "import sys, importers\n"
        f"loaded = importers.load('resnet18', {str(source)!r})\n"
        f"importers.write_safetensors({str(tmp_path / 'out')!r}, 'resnet18', loaded.params, "
        "loaded.batch_stats)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert importers.read_state_dict(tmp_path / "out").keys() == (
        importers.read_state_dict(source).keys()
    )
