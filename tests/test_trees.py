"""Layers of a bare tree, by the names and ranks of its leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import trees
from flax import nnx
from flax.core import freeze

from tlv_jax import ParameterTreeError
from tlv_jax.layers.trees import find_layers


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def layers_of(tree):
    return find_layers(tree, name="t")[0]


def paths(tree):
    return [layer.path for layer in layers_of(tree)]


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda tree: jax.jit(lambda tree: tree)(tree),
        lambda tree: jax.tree.map(lambda leaf: leaf, tree),
        lambda tree: dict(reversed(tree.items())),
        freeze,
    ],
    ids=["jit", "tree_map", "reversed", "frozen"],
)
def test_the_order_does_not_depend_on_how_the_tree_was_made(rebuild):
    tree = {
        "fc": {"kernel": jnp.zeros((4, 2))},
        "layer1.10": {"conv1": {"kernel": jnp.zeros((1, 1, 4, 4))}},
        "layer1.2": {"conv1": {"kernel": jnp.zeros((1, 1, 4, 4))}},
        "conv1": {"kernel": jnp.zeros((3, 3, 3, 4))},
    }
    expected = ["conv1", "layer1.2/conv1", "layer1.10/conv1", "fc"]
    assert paths(tree) == paths(rebuild(tree)) == expected


def test_a_restored_checkpoint_has_the_same_order(tmp_path):
    tree = jax.tree.map(
        lambda leaf: jnp.zeros((1,) * leaf.ndim), trees.shapes("efficientnet_lite0")["params"]
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "params", tree)
    assert paths(restored) == paths(tree)
    assert paths(tree)[:3] == ["_conv_stem", "_bn0", "_blocks.0/_depthwise_conv"]


def test_an_unknown_tree_has_the_natural_order_and_no_family():
    tree = {f"block{i}": {"kernel": shape(1, 1, 2, 2)} for i in (10, 9, 1)}
    layers, family = find_layers(tree, name="t")
    assert [layer.path for layer in layers] == ["block1", "block9", "block10"]
    assert family is None


def test_bare_kernels_have_the_natural_order_too_and_belong_to_no_family():
    kernel = shape(3, 3, 4, 4)
    tree = {"w1": kernel, "w2": kernel, "w10": kernel}
    assert paths(tree) == ["w1", "w2", "w10"]
    tree = {"block": {"a2": kernel, "a10": kernel}, "stem": kernel, "a": {"kernel": kernel}}
    assert paths(tree) == ["a", "block/a2", "block/a10", "stem"]
    assert find_layers({"block": {"a": kernel}}, name="t")[1] is None  # EfficientNet's word


def test_linen_variables_join_a_norm_with_its_statistics():
    norm = next(layer for layer in layers_of(trees.shapes("resnet18")) if layer.kind == "norm")
    assert norm.path == "params/bn1"
    assert dict(norm.vectors) == {
        "bias": "params/bn1/bias",
        "mean": "batch_stats/bn1/mean",
        "var": "batch_stats/bn1/var",
    }


@pytest.mark.parametrize("prefixes", [("", ""), ("params/", "state/")], ids=["merged", "apart"])
def test_haiku_norms_are_joined_with_their_moving_averages(prefixes):
    params, state = prefixes
    average = {name: shape(1, 1, 1, 8) for name in ("average", "hidden")}
    average["counter"] = shape(dtype=jnp.int32)
    tree = {
        f"{params}net/~/bn": {"scale": shape(1, 1, 1, 8), "offset": shape(1, 1, 1, 8)},
        f"{state}net/~/bn/~/mean_ema": average,
        f"{state}net/~/bn/~/var_ema": average,
        f"{state}codes/~/cluster_ema": average,  # of no norm: no layer either
    }
    (norm,) = layers_of(tree)
    assert (norm.path, norm.kind, norm.shape) == (f"{params}net/~/bn", "norm", (8,))
    assert dict(norm.vectors) == {
        "bias": f"{params}net/~/bn/offset",
        "mean": f"{state}net/~/bn/~/mean_ema/average",
        "var": f"{state}net/~/bn/~/var_ema/average",
    }


def test_equinox_kernels_are_read_as_channels_first(key):
    (layer,) = layers_of(eqx.nn.Conv2d(3, 8, (5, 7), key=key))
    assert (layer.kind, layer.shape, layer.axes) == ("conv", (5, 7, 3, 8), (2, 3, 1, 0))
    assert dict(layer.vectors) == {"bias": "bias"}


def test_nnx_state_is_read_like_a_dict():
    state = nnx.state(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.Param)
    (layer,) = layers_of({"conv": state})
    assert (layer.path, layer.kind, layer.shape) == ("conv", "conv", (3, 3, 3, 4))


def test_bare_kernels_are_layers_of_their_own():
    tree = {"stem": shape(3, 3, 3, 4), "head": shape(4, 2), "gain": shape(4)}
    found = {(layer.path, layer.kind) for layer in layers_of(tree)}
    assert found == {("stem", "conv"), ("head", "dense")}


def test_attention_projections_are_not_taken_for_convs():
    tree = {"attention": {"query": {"kernel": shape(8, 2, 4)}, "x": {"kernel": shape(2, 2)}}}
    assert paths(tree) == ["attention/x"]


def test_an_empty_kernel_is_refused_by_its_path():
    with pytest.raises(ParameterTreeError, match="'conv/kernel'"):
        find_layers({"conv": {"kernel": shape(3, 3, 0, 4)}}, name="t")
