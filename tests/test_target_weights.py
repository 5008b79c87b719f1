"""Weights that a target is given, read from files of torch's and from Orbax."""

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import trees
from small_network import Net
from test_target import OfNNX

import importers
import tlv_jax
from tlv_jax import models
from train import Config
from train.commands.writing import write
from train.errors import ConfigError
from train.modules import target_of
from train.target_weights import load_target_weights, with_weights

IMAGES = jnp.zeros((1, 8, 8, 3))


def target_named(name, module, seed=0):
    return target_of(name, module, jax.random.key(seed), IMAGES)


def given(path, target, name="small_network:Net", classes=2):
    config = Config(target=name, target_weights=path, image_size=32)
    return with_weights(name, target, load_target_weights(config, target), classes).network.params


def saved(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture(scope="module")
def net():
    return target_named("small_network:Net", Net())


@pytest.fixture(scope="module")
def other(net):
    """Variables of the same network, all of them other ones."""
    return jax.tree.map(lambda leaf: leaf + 1, net.network.params)


def test_variables_of_a_linen_module_are_taken_whole(net, other, tmp_path):
    found = given(saved(tmp_path / "variables", other), net)
    chex.assert_trees_all_equal(found, other)


def test_parameters_alone_leave_the_running_statistics_and_say_so(net, other, tmp_path):
    path = saved(tmp_path / "params", other["params"])
    with pytest.warns(UserWarning, match="without running statistics, such as batch_stats/norm"):
        found = given(path, net)
    chex.assert_trees_all_equal(found["params"], other["params"])
    chex.assert_trees_all_equal(found["batch_stats"], net.network.params["batch_stats"])


def test_a_file_of_arrays_by_their_paths_is_taken(net, other, tmp_path):
    write(tmp_path / "net.safetensors", "small_network:Net", other)
    chex.assert_trees_all_equal(given(tmp_path / "net.safetensors", net), other)


@pytest.mark.parametrize("whole", [True, False], ids=["with random keys", "without"])
def test_the_state_of_an_nnx_module_is_taken(tmp_path, whole):
    module = OfNNX(nnx.Rngs(1), num_classes=2)
    module.norm.mean[...] += 3
    state = nnx.state(module) if whole else nnx.state(module, nnx.Not(nnx.RngState))
    path = saved(tmp_path / "state", state)
    name = "test_target:OfNNX"
    target = target_named(name, OfNNX(nnx.Rngs(0), num_classes=2))
    found = given(path, target, name)
    assert isinstance(found, OfNNX)
    for part in (nnx.Param, nnx.BatchStat):
        chex.assert_trees_all_equal(
            nnx.to_pure_dict(nnx.state(found, part)), nnx.to_pure_dict(nnx.state(module, part))
        )


def test_another_network_is_refused_by_the_paths_that_differ(net, other, tmp_path):
    wide = target_named("small_network:Net", Net(width=9)).network.params
    match = (
        r"wide are not those of target='small_network:Net': .*params/conv/bias "
        r"\(float32\[9\] there, float32\[8\] in the target\), 4 more"
    )
    with pytest.raises(ConfigError, match=match):
        given(saved(tmp_path / "wide", wide), net)
    renamed = {**other, "params": {**other["params"], "stem": other["params"]["conv"]}}
    del renamed["params"]["conv"]
    with pytest.raises(ConfigError, match=r"params/conv/bias \(nothing there.* more"):
        given(saved(tmp_path / "renamed", renamed), net)
    more = {**other, "opt_state": {"count": np.int32(3)}}
    with pytest.raises(ConfigError, match=r"opt_state/count \(int32\[\] there, nothing in"):
        given(saved(tmp_path / "more", more), net)


def test_a_head_for_other_classes_stays_as_it_is_initialized(net, tmp_path):
    five = target_named("small_network:Net", Net(num_classes=5), seed=1).network.params
    path = saved(tmp_path / "five", five)
    with pytest.warns(importers.FreshHeadWarning, match=r"than 2: params/dense/bias, .*/kernel"):
        found = given(path, net)
    chex.assert_trees_all_equal(found["params"]["dense"], net.network.params["params"]["dense"])
    chex.assert_trees_all_equal(found["params"]["conv"], five["params"]["conv"])


def test_a_layer_that_is_as_wide_as_there_are_classes_is_no_head(tmp_path):
    wide = target_named("small_network:Net", Net(width=9, num_classes=8)).network.params
    eight = target_named("small_network:Net", Net(num_classes=8))
    with pytest.raises(ConfigError, match="are not those of target"):
        given(saved(tmp_path / "wide", wide), eight, classes=8)


def test_values_that_are_not_finite_are_refused(net, other, tmp_path):
    other = jax.tree.map(jnp.copy, other)
    other["params"]["norm"]["scale"] = other["params"]["norm"]["scale"].at[1].set(jnp.nan)
    with pytest.raises(ConfigError, match="NaN or infinite values in params/norm/scale"):
        given(saved(tmp_path / "nan", other), net)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no such file or folder"),
        ("empty", r"cannot be read \(it holds no checkpoint\), .*StandardCheckpointer"),
        ("file.pth", "file.pth are not those of .*Net': params/conv/bias .nothing there, float32"),
    ],
)
def test_what_holds_no_weights_for_a_module_is_refused(net, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "file.pth")
    with pytest.raises(ConfigError, match=message):
        given(tmp_path / name, net)


def test_a_file_of_torch_fills_an_architecture_but_for_a_head_of_other_classes(net, tmp_path):
    name, head = "squeezenet1_1", "classifier.1"
    variables = trees.random_variables(trees.shapes(name, num_classes=5), seed=0)
    torch.save(importers.export(name, variables["params"]), tmp_path / "five.pth")
    own = trees.random_variables(trees.shapes(name, num_classes=2), seed=1)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    network = tlv_jax.trace(models.create(name, num_classes=2).apply, own, images)
    target = net._replace(network=network, split=lambda variables: (variables["params"], {}))
    with pytest.warns(importers.FreshHeadWarning, match=r"classifier\.1/kernel keep their own"):
        found = given(tmp_path / "five.pth", target, name)
    chex.assert_trees_all_equal(found["params"].pop(head), own["params"][head])
    del variables["params"][head]
    chex.assert_trees_all_equal(found["params"], variables["params"])
