import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import trees
from flax import nnx
from flax.core import freeze

import tlv_jax
from tlv_jax import ParameterTreeError, models
from tlv_jax.standardization import find_layers, standardize_flat


def paths(tree):
    return [layer.path for layer in find_layers(tree, name="t")[0]]


def traced(name):
    variables = trees.shapes(name)
    model = models.create(name, num_classes=10)
    rest = {key: value for key, value in variables.items() if key != "params"}
    rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
    auxiliary = hasattr(model, "aux_logits")  # whose layers are at work in training only
    side = 299 if auxiliary else getattr(model, "image_size", 96)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)

    def apply(params, images):
        if not auxiliary:
            return model.apply({"params": params, **rest}, images)
        rngs = {"dropout": jax.random.key(0)}
        options = {"train": True, "mutable": ["batch_stats"], "rngs": rngs}
        return model.apply({"params": params, **rest}, images, **options)

    return tlv_jax.trace_layers(apply, variables["params"], images)


@pytest.mark.parametrize("name", models.names())
def test_the_known_order_of_every_architecture_is_that_of_execution(name):
    layers, how = find_layers(trees.shapes(name)["params"], name="t")
    assert "execution order" in how
    # Swin's second version makes a bias from constants with two layers that no image goes through.
    layers = [layer for layer in layers if "cpb_mlp" not in layer.path]
    expected = traced(name)
    assert [layer.path for layer in layers] == [layer.path for layer in expected]
    assert [(layer.shape, layer.axes, layer.vectors) for layer in layers] == [
        (layer.shape, layer.axes, layer.vectors) for layer in expected
    ]


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


def test_an_unknown_tree_has_the_natural_order_and_the_plan_says_so():
    tree = {f"block{i}": {"kernel": jnp.zeros((1, 1, 2, 2))} for i in (10, 9, 1)}
    layers, how = find_layers(tree, name="t")
    assert [layer.path for layer in layers] == ["block1", "block9", "block10"]
    assert "natural order" in how


def test_linen_variables_join_a_norm_with_its_statistics():
    layers, _ = find_layers(trees.shapes("resnet18"), name="t")
    norm = next(layer for layer in layers if layer.kind == "norm")
    assert norm.path == "params/bn1"
    assert dict(norm.vectors) == {
        "bias": "params/bn1/bias",
        "mean": "batch_stats/bn1/mean",
        "var": "batch_stats/bn1/var",
    }


@pytest.mark.parametrize("prefixes", [("", ""), ("params/", "state/")], ids=["merged", "apart"])
def test_haiku_norms_are_joined_with_their_moving_averages(prefixes):
    params, state = prefixes
    average = {name: jnp.zeros((1, 1, 1, 8)) for name in ("average", "hidden")}
    average["counter"] = jnp.zeros((), jnp.int32)
    tree = {
        f"{params}net/~/bn": {"scale": jnp.zeros((1, 1, 1, 8)), "offset": jnp.zeros((1, 1, 1, 8))},
        f"{state}net/~/bn/~/mean_ema": average,
        f"{state}net/~/bn/~/var_ema": average,
        f"{state}codes/~/cluster_ema": average,  # of no norm: no layer either
    }
    (norm,), _ = find_layers(tree, name="t")
    assert (norm.path, norm.kind, norm.shape) == (f"{params}net/~/bn", "norm", (8,))
    assert dict(norm.vectors) == {
        "bias": f"{params}net/~/bn/offset",
        "mean": f"{state}net/~/bn/~/mean_ema/average",
        "var": f"{state}net/~/bn/~/var_ema/average",
    }


def test_equinox_kernels_are_read_as_channels_first(key):
    module = eqx.nn.Conv2d(3, 8, (5, 7), key=key)
    (layer,), _ = find_layers(module, name="t")
    assert (layer.kind, layer.shape, layer.axes) == ("conv", (5, 7, 3, 8), (2, 3, 1, 0))
    assert dict(layer.vectors) == {"bias": "bias"}


def test_nnx_state_is_read_like_a_dict():
    state = nnx.state(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.Param)
    (layer,), _ = find_layers({"conv": state}, name="t")
    assert (layer.path, layer.kind, layer.shape) == ("conv", "conv", (3, 3, 3, 4))


def test_bare_kernels_are_layers_of_their_own():
    tree = {"stem": jnp.zeros((3, 3, 3, 4)), "head": jnp.zeros((4, 2)), "gain": jnp.zeros(4)}
    layers, _ = find_layers(tree, name="t")
    assert {(layer.path, layer.kind) for layer in layers} == {("stem", "conv"), ("head", "dense")}


def test_attention_projections_are_not_taken_for_convs():
    tree = {
        "attention": {"query": {"kernel": jnp.zeros((8, 2, 4))}, "x": {"kernel": jnp.ones((2, 2))}}
    }
    assert paths(tree) == ["attention/x"]


@pytest.mark.parametrize(("kinds", "count"), [(("conv",), 20), (("dense", "norm"), 21), ((), 0)])
def test_flat_standardization_keeps_the_kinds_asked_for(kinds, count):
    layers, _ = find_layers(trees.shapes("resnet18")["params"], name="t")
    assert len(standardize_flat(layers, kinds)) == count


def test_an_empty_kernel_is_refused_by_its_path():
    with pytest.raises(ParameterTreeError, match="'conv/kernel'"):
        find_layers({"conv": {"kernel": jnp.zeros((3, 3, 0, 4))}}, name="t")
