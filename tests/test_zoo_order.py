"""The order of execution of the zoo's architectures, told by names alone."""

import functools

import jax
import jax.numpy as jnp
import pytest
import trees

import tlv_jax
from tlv_jax import models
from tlv_jax.layers.trees import find_layers
from tlv_jax.layers.zoo_order import ORDERS

# The smallest one of each kind of block; the others only repeat these, in other numbers.
KINDS = (
    *("alexnet", "vgg11_bn", "squeezenet1_1", "googlenet", "inception_v3", "resnet18", "resnet50"),
    *("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "densenet121", "efficientnet_b0"),
    *("efficientnet_v2_s", "efficientnet_lite0", "regnet_x_800mf", "regnet_y_800mf"),
    *("shufflenet_v2_x0_5", "convnext_tiny", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"),
)
# Tracing any other takes seconds.
QUICK = {*KINDS} - {"densenet121", "efficientnet_v2_s", "inception_v3", "maxvit_t"}


def traced(name):
    variables, model = trees.shapes(name), models.create(name, num_classes=10)
    if hasattr(model, "aux_logits"):  # whose layers are at work in training only
        rngs = {"dropout": jax.random.key(0)}
        options = {"train": True, "mutable": ["batch_stats"], "rngs": rngs}
        apply, side = functools.partial(model.apply, **options), 299
    else:
        apply, side = model.apply, getattr(model, "image_size", 64)
    return tlv_jax.trace(apply, variables, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in models.names()],
)
def test_the_known_order_of_every_architecture_is_that_of_execution(name):
    layers, family = find_layers(trees.shapes(name), name="t")
    assert family in ORDERS
    # Swin's second version makes a bias from constants with two layers that no image goes through.
    layers = [layer for layer in layers if "cpb_mlp" not in layer.path]
    expected = traced(name).layers
    assert [layer.path for layer in layers] == [layer.path for layer in expected]
    assert [(layer.shape, layer.axes, layer.vectors) for layer in layers] == [
        (layer.shape, layer.axes, layer.vectors) for layer in expected
    ]


def test_every_known_order_is_that_of_an_architecture():
    assert {find_layers(trees.shapes(name), name="t")[1] for name in KINDS} == set(ORDERS)
