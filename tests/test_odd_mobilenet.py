"""The example of a user's own network, which `make demo` trains."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tyro

import importers
import tlv_jax
from train.config import Config
from train.modules import build_module, target_of
from train.resolve import resolve
from train.target import check_target

ROOT = Path(__file__).parent.parent


@functools.cache
def demo():
    """The settings of `make demo`."""
    (command,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    arguments = command.replace("\\\n", " ").split("-m train")[1].split()
    return resolve(tyro.cli(Config, args=arguments))


def module(num_classes, dtype):
    return build_module(
        demo().target,
        num_classes=num_classes,
        image_size=demo().image_size,
        dtype=jnp.dtype(dtype),
        key=jax.random.key(0),
    )


@functools.cache
def target():
    """The demo's network, its variables by their shapes."""
    model = module(2, "float32")
    size = demo().image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return tlv_jax.trace(model.apply, variables, images)


def test_the_demo_trains_the_example_beside_its_twin():
    assert demo().target == "examples.odd_mobilenet:OddMobileNet"
    assert demo().source == "efficientnet_lite0"
    assert demo().baseline
    assert demo().method == resolve(Config()).method


def test_imagenet_weights_reach_nearly_all_of_it():
    source = importers.load("efficientnet_lite0").network
    plan = tlv_jax.plan_transfer(source, target())
    convs = [layer.path for layer in target().layers if layer.kind == "conv"]
    assert len(convs) == 41
    assert len([pair for pair in plan.layer_pairs if pair.target.kind == "conv"]) == 40
    assert tlv_jax.similarity(source, target()) > 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_features_are_found(dtype):
    size = demo().image_size
    images = jnp.zeros((1, size, size, 3), dtype)
    traced = target_of(demo().target, module(7, dtype), jax.random.key(0), images)
    check_target(demo().target, traced, images, 7, crossover=True)
    assert traced.network.layers[-1].shape == (900, 7)
