"""Layers of a bare tree, by the names and ranks of its leaves."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import trees
from flax import nnx, traverse_util
from flax.core import freeze

import tlv_jax
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


FLAT = {
    "sep": lambda tree: traverse_util.flatten_dict(tree, sep="/"),
    "dots": lambda tree: traverse_util.flatten_dict(tree, sep="."),
    "tuples": traverse_util.flatten_dict,
}


@pytest.mark.parametrize("form", FLAT)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_flat_dicts_are_read_as_the_trees_that_they_were(name, form):
    nested = trees.shapes(name)
    expected, family = find_layers(nested, name="t")
    found, same = find_layers(FLAT[form](nested), name="t")
    assert same == family

    def slashed(layer):
        return dataclasses.replace(
            layer,
            path=layer.path.replace(".", "/"),
            weight=layer.weight.replace(".", "/"),
            vectors=tuple((name, path.replace(".", "/")) for name, path in layer.vectors),
        )

    assert [slashed(layer) for layer in found] == [slashed(layer) for layer in expected]


def test_a_state_dict_of_torch_is_read_in_its_own_layout():
    tree = {
        "layer1.10.conv1.weight": shape(8, 4, 5, 7),
        "layer1.2.bn1.weight": shape(8),
        "layer1.2.bn1.bias": shape(8),
        "layer1.2.bn1.running_mean": shape(8),
        "layer1.2.bn1.running_var": shape(8),
        "layer1.2.bn1.num_batches_tracked": shape(dtype=jnp.int32),
        "attention.in_proj_weight": shape(24, 8),
        "norm.weight": shape(4, 6, 6),  # a layer norm over all axes
        "norm.bias": shape(4, 6, 6),
    }
    attention, norm, conv = layers_of(tree)
    assert (conv.path, conv.kind, conv.shape) == ("layer1.10.conv1", "conv", (5, 7, 4, 8))
    assert (norm.path, norm.kind, norm.shape) == ("layer1.2.bn1", "norm", (8,))
    assert [name for name, _ in norm.vectors] == ["bias", "mean", "var"]
    assert (attention.kind, attention.shape) == ("dense", (8, 24))


def test_a_list_of_layers_is_a_tree_and_vectors_that_broadcast_are_no_kernels():
    stax = [(shape(3, 3, 3, 8), shape(1, 1, 1, 8)), (), (shape(3, 3, 8, 8), shape(1, 1, 1, 8))]
    assert paths([*stax, (shape(8, 2), shape(2))]) == ["0/0", "2/0", "3/0"]
    assert paths([{"kernel": shape(3, 3, 4, 4)}] * 3) == ["0", "1", "2"]


class Small(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)


def boxed():
    ones = nnx.initializers.ones
    layer = nn.Conv(4, (3,), kernel_init=nn.with_partitioning(ones, (None, None, "model")))
    return layer.init(jax.random.key(0), jnp.ones((1, 8, 3)))


@pytest.mark.parametrize("make", [lambda: nnx.state(Small()), boxed], ids=["nnx", "linen"])
def test_a_tree_that_orbax_restored_without_a_target_has_the_same_layers(tmp_path, make):
    tree = make()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "tree")
    assert layers_of(restored) == layers_of(tree)
    assert layers_of(restored)[0].vectors


class Block(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, images, _):
        images = nn.Conv(4, (3, 3), use_bias=not self.norm)(images)
        images = nn.BatchNorm(use_running_average=True)(images) if self.norm else images
        return nn.relu(images), None


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
@pytest.mark.parametrize("norm", [False, True])
def test_layers_of_a_scan_are_pointed_to_trace(norm):
    axes = {"params": 0, "batch_stats": 0}
    blocks = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)(norm)
    images = jnp.ones((1, 8, 8, 4))
    variables = blocks.init(jax.random.key(0), images, None)
    source = {"conv": {"kernel": jnp.ones((3, 3, 4, 4))}}
    with pytest.raises(ParameterTreeError, match=r"Conv_0/kernel'.*3 layers.*tlv_jax\.trace"):
        tlv_jax.transfer(source, variables)
    network = tlv_jax.trace(lambda *args: blocks.apply(*args, None)[0], variables, images)
    assert len(tlv_jax.plan_transfer(source, network).pairs) == 3
