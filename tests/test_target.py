"""Targets: any Flax module that maps images to logits."""

import chex
import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from small_network import Net

import tlv_jax
from importers.nnx_network import NNXNetwork
from tlv_jax import models
from tlv_jax.errors import OptionError
from tlv_jax.models.mobilenet_v2 import MobileNetV2Config, StageConfig
from train.errors import ConfigError
from train.linen_target import linen_target
from train.modules import build_module, parse_arguments, target_of
from train.nnx_target import nnx_target
from train.target import check_target

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def build(name, **arguments):
    module = build_module(name, arguments, num_classes=5, image_size=8, dtype=jnp.float32, key=KEY)
    target = target_of(name, module, KEY, IMAGES[:1])
    check_target(name, target, IMAGES[:1], 5, crossover=False)
    return module, target


class CallOnly(nn.Module):
    """Has neither `features` nor `head`, and is told by `deterministic` that it is evaluated."""

    num_classes: int = 5

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.Conv(4, (3, 3))(images)
        x = nn.BatchNorm(use_running_average=deterministic)(x).mean((1, 2))
        x = nn.Dropout(0.5)(nn.Dense(6)(x), deterministic=deterministic)
        return nn.Sequential([nn.relu, nn.Dense(self.num_classes)])(x)


class OfNNX(nnx.Module):
    def __init__(self, rngs, num_classes=5):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        layers = nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, num_classes, rngs=rngs)
        self.layers = nnx.Sequential(*layers)

    def __call__(self, images):
        return self.layers(self.drop(self.norm(self.conv(images)).mean((1, 2))))


ANY = pytest.mark.parametrize(
    "name", ["small_network:Net", "test_target:CallOnly", "test_target:OfNNX"]
)


@ANY
def test_a_user_s_own_module_is_trained_and_evaluated(name):
    module, target = build(name)
    params, state = target.split(target.network.params)
    logits, updated = target.train(params, state, IMAGES, KEY, None)
    assert logits.shape == (2, 5)
    chex.assert_trees_all_equal_shapes(updated, state)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(updated, state)  # statistics of the batch came in
    evaluated = target.evaluate(params, state, IMAGES)
    np.testing.assert_allclose(evaluated, target.network.fn(target.network.params, IMAGES), 1e-5)
    gradients = jax.grad(lambda params: target.train(params, state, IMAGES, KEY, None)[0].sum())(
        params
    )
    chex.assert_trees_all_equal_shapes(gradients, params)
    assert any(jnp.abs(each).max() > 0 for each in jax.tree.leaves(gradients))
    assert type(target.network.params) is (dict if isinstance(module, nn.Module) else type(module))


@pytest.mark.parametrize("name", ["test_target:CallOnly", "test_target:OfNNX"])
def test_dropout_follows_the_key(name):
    _, target = build(name)
    params, state = target.split(target.network.params)
    first, again, other = (
        target.train(params, state, IMAGES, jax.random.key(seed), None)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@ANY
def test_penultimate_features_can_be_changed(name):
    _, target = build(name)
    params, state = target.split(target.network.params)
    seen = []

    def change(features):
        seen.append(features)
        return jnp.zeros_like(features)

    unchanged, _ = target.train(params, state, IMAGES, KEY, lambda features: features)
    expected, _ = target.train(params, state, IMAGES, KEY, None)
    np.testing.assert_allclose(unchanged, expected, rtol=1e-6)
    changed, _ = target.train(params, state, IMAGES, KEY, change)
    assert len(seen) == 1
    assert seen[0].shape == (2, 8 if name.endswith("Net") else 6)
    np.testing.assert_array_equal(changed, jnp.zeros((2, 5)))  # the bias is zero
    again, _ = target.train(params, state, IMAGES, KEY, None)
    np.testing.assert_array_equal(again, expected)


@ANY
def test_a_transfer_returns_what_can_be_split(name):
    _, target = build(name)
    source = {"conv": {"kernel": jnp.ones((3, 3, 3, 4))}}
    new = tlv_jax.apply_transfer(
        tlv_jax.plan_transfer(source, target.network), KEY, source, target.network
    )
    params, _ = target.split(new)
    chex.assert_trees_all_equal_shapes(params, target.split(target.network.params)[0])
    assert any((leaf == 1).sum() >= 108 for leaf in jax.tree.leaves(params) if leaf.ndim == 4)


def test_an_architecture_is_built_by_its_name():
    model = build_module("resnet18", num_classes=5, image_size=8, dtype=jnp.bfloat16, key=KEY)
    assert (model.num_classes, model.dtype) == (5, jnp.bfloat16)


def test_an_architecture_is_built_for_the_images_of_the_run():
    options = {"num_classes": 5, "dtype": jnp.float32, "key": KEY}
    assert build_module("vit_b_32", image_size=96, **options).image_size == 96
    assert build_module("resnet18", image_size=96, **options).num_classes == 5
    with pytest.raises(OptionError, match="image_size=72 for 'vit_b_16', expected a multiple of"):
        build_module("vit_b_16", image_size=72, **options)


def make_net(num_classes, width):
    return Net(width=width, num_classes=num_classes)


def test_arguments_reach_the_module():
    assert parse_arguments(("width=0.5", "act=relu", "sizes=(1, 2)", "bias=False")) == {
        "width": 0.5,
        "act": "relu",
        "sizes": (1, 2),
        "bias": False,
    }
    assert build("small_network:Net", width=3)[0] == Net(width=3, num_classes=5, dtype=jnp.float32)
    assert build("test_target:make_net", width=3)[0] == Net(width=3, num_classes=5)
    for wrong in ("width", "=3", "a b=1"):
        with pytest.raises(ConfigError, match="expected NAME=VALUE, got"):
            parse_arguments((wrong,))


class TwoClasses(CallOnly):
    num_classes: int = 2

    def __call__(self, images, deterministic):
        return super().__call__(images, deterministic)[:, :2]


class NoDense(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Conv(5, (3, 3))(images).mean((1, 2))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(5)(nn.Conv(4, (3, 3))(images)).mean((1, 2))


class Greedy(CallOnly):
    def __call__(self, images, mask, deterministic):
        return super().__call__(images, deterministic)


class NeedsWidth(CallOnly):
    width: int = -1

    def __post_init__(self):
        if self.width < 0:
            raise ValueError("width is missing")
        super().__post_init__()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet19", OptionError, "resnet18"),
        ("nowhere:Net", ConfigError, "No module named 'nowhere'"),
        ("small_network:Ned", ConfigError, "no attribute 'Ned'"),
        (":Net", ConfigError, "package.module:Name"),
        ("jax.numpy:float32", ConfigError, r"cannot be built|expected a module"),
        ("builtins:list", ConfigError, r"cannot be built|expected a module"),
        ("test_target:NeedsWidth", ConfigError, "width is missing.*--target-args"),
        ("test_target:TwoClasses", ConfigError, r"gives \(1, 2\).*num_classes"),
        ("test_target:Greedy", ConfigError, "cannot be called on images.*mask"),
    ],
)
def test_what_cannot_be_trained_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        build(name)


@pytest.mark.parametrize("name", ["test_target:NoDense", "test_target:Attention"])
def test_a_network_without_penultimate_features_trains_without_crossover(name):
    _, target = build(name)
    with pytest.raises(ConfigError, match=r"last dense layer.*crossover_rate=0"):
        check_target(name, target, IMAGES, 5, crossover=True)


def test_a_module_of_the_zoo_has_its_own_features():
    model = models.create("resnet18", num_classes=5)
    target = linen_target(model, KEY, jnp.zeros((1, 32, 32, 3)))
    shape = jax.eval_shape(
        lambda: target.train(
            *target.split(target.network.params),
            jnp.zeros((2, 32, 32, 3)),
            KEY,
            lambda f: f[:, ::-1],
        )
    )[0]
    assert shape.shape == (2, 5)


def test_arguments_are_for_own_modules():
    with pytest.raises(ConfigError, match=r"target_args=.*package\.module:Name"):
        build_module(
            "resnet18", {"width": 1}, num_classes=5, image_size=8, dtype=jnp.float32, key=KEY
        )


def test_an_nnx_module_keeps_what_it_was():
    module = OfNNX(nnx.Rngs(0))
    before = nnx.state(module)
    target = nnx_target(module, IMAGES[:1])
    target.train(*target.split(module), IMAGES, KEY, lambda features: 0 * features)
    chex.assert_trees_all_equal(nnx.state(module), before)
    assert type(module.layers.layers[2]) is nnx.Linear


def test_an_nnx_module_of_the_zoo_has_features_and_a_head():
    config = MobileNetV2Config((StageConfig(1, 8, repeats=1, stride=1),))
    model = models.MobileNetV2(config, num_classes=5)
    variables = trees.random_variables(models.abstract_variables(model), 0)
    module = NNXNetwork(model, variables, nnx.Rngs(0))
    target = nnx_target(module, IMAGES[:1])
    seen = []

    @jax.jit
    def train(params, state):
        return target.train(params, state, IMAGES, KEY, lambda x: seen.append(x.shape) or 0 * x)

    logits, _ = train(*target.split(module))
    assert seen == [(2, 1280)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)
