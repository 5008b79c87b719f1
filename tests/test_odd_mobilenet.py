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
from train.config import Config, resolve
from train.target import create_target

ROOT = Path(__file__).parent.parent


@functools.cache
def demo():
    """The settings of `make demo`."""
    (command,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    arguments = command.replace("\\\n", " ").split("-m train")[1].split()
    return resolve(tyro.cli(Config, args=arguments))


@functools.cache
def target():
    """The demo's network, its variables by their shapes."""
    model = create_target(demo().target, num_classes=2, dtype=jnp.float32)
    size = demo().image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return tlv_jax.trace(model.apply, variables, images)


def test_the_demo_trains_the_example_beside_its_twin():
    assert demo().target == "examples.odd_mobilenet:OddMobileNet"
    assert demo().source == "efficientnet_lite0"
    assert demo().baseline
    assert demo().method == Config().method


def test_imagenet_weights_reach_nearly_all_of_it():
    source = importers.load("efficientnet_lite0").network
    plan = tlv_jax.plan_transfer(source, target())
    convs = [layer.path for layer in target().layers if layer.kind == "conv"]
    assert len(convs) == 41
    assert len(plan.pairs) == 40
    assert tlv_jax.similarity(source, target()) > 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_methods_fit_together(dtype):
    model = create_target(demo().target, num_classes=7, dtype=jnp.dtype(dtype))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.dtype(dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    features = jax.eval_shape(functools.partial(model.apply, method="features"), variables, images)
    assert features.shape == (2, 900)
    logits = jax.eval_shape(functools.partial(model.apply, method="head"), variables, features)
    assert logits == jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 7), dtype)
