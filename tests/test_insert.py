"""Deeper and wider networks of the same function (Net2Net)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
import zoo
from helpers import relative_error

import tlv_jax
from tlv_jax import methods
from tlv_jax.consistent.apply import identity_kernel

IMAGES = np.random.default_rng(5).normal(size=(2, 8, 8, 3)).astype(np.float32)


class Plain(nn.Module):
    """VGG-like: stages of convolutions, each with a ReLU, and a pool behind each stage."""

    depths: tuple
    widths: tuple
    norm: bool = True
    bias: bool = True
    size: int = 3
    hidden: int = 12
    dense: int = 1

    @nn.compact
    def __call__(self, images):
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for number in range(depth):
                name = f"conv{stage}_{number}"
                conv = nn.Conv(width, (self.size, self.size), use_bias=self.bias, name=name)
                images = conv(images)
                if self.norm:
                    norm = nn.BatchNorm(use_running_average=True, name=f"norm{stage}_{number}")
                    images = norm(images)
                images = nn.relu(images)
            images = nn.max_pool(images, (2, 2), (2, 2))
        outputs = images.reshape(images.shape[0], -1)
        for number in range(self.dense):
            outputs = nn.relu(nn.Dense(self.hidden, name=f"hidden{number}")(outputs))
        return nn.Dense(5, name="head")(outputs)


class Residual(nn.Module):
    """Stages of residual blocks, with or without norms, their activation before or behind."""

    depths: tuple
    widths: tuple
    norm: bool = True
    before: bool = False
    gated: bool = False

    @nn.compact
    def __call__(self, images):
        outputs = nn.Conv(self.widths[0], (3, 3), name="stem")(images)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for number in range(depth):
                strides = (2, 2) if stage and not number else (1, 1)
                outputs = self.block(outputs, width, strides, f"{stage}_{number}")
        return nn.Dense(5, name="head")(nn.relu(outputs).mean((1, 2)))

    def block(self, inputs, width, strides, name):
        """conv, conv, and the sum with the inputs."""
        outputs = inputs
        for number in range(2):
            if self.before:
                outputs = nn.relu(self.normed(outputs, f"norm{name}_{number}"))
            step = (1, 1) if number else strides
            outputs = nn.Conv(width, (3, 3), step, name=f"conv{name}_{number}")(outputs)
            if not self.before:
                outputs = self.normed(outputs, f"norm{name}_{number}")
                outputs = outputs if number else nn.relu(outputs)
        if self.gated:
            gate = nn.Dense(width, name=f"gate{name}")(outputs.mean((1, 2), keepdims=True))
            outputs = outputs * nn.sigmoid(gate)
        if inputs.shape != outputs.shape:
            inputs = nn.Conv(width, (1, 1), strides, name=f"shortcut{name}")(inputs)
        outputs = inputs + outputs
        return outputs if self.before else nn.relu(outputs)

    def normed(self, inputs, name):
        norm = nn.BatchNorm(use_running_average=True, name=name)
        return norm(inputs) if self.norm else inputs


@functools.cache
def traced(model):
    return tlv_jax.trace(model.apply, jax.eval_shape(model.init, jax.random.key(0), IMAGES), IMAGES)


def drawn(model, seed):
    network = traced(model)
    return dataclasses.replace(network, params=trees.random_variables(network.params, seed))


@functools.cache
def compiled(fn):
    return jax.jit(fn)


def logits(network, params):
    return compiled(network.fn)(params, IMAGES)


def planned(source, target, **changes):
    """The plan, the source and the target."""
    networks = drawn(source, 0), drawn(target, 1)
    method = dataclasses.replace(methods.NET2NET, **changes)
    return tlv_jax.plan_transfer(*networks, method), *networks


def deepened(source, target, **changes):
    """The plan, and how far the target's logits are from the source's."""
    plan, source, target = planned(source, target, **changes)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    return plan, relative_error(logits(target, new), logits(source, source.params))


def roles(plan):
    return {entry.layer.path.removeprefix("params/"): entry.role for entry in plan.inserted}


def reasons(plan):
    return {leaf.path.removeprefix("params/"): leaf.reason for leaf in plan.untouched}


SHALLOW, DEEP = {"depths": (1, 2), "widths": (4, 6)}, {"depths": (2, 4), "widths": (4, 6)}
WIDER = {"depths": (2, 4), "widths": (7, 12)}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("target", [DEEP, WIDER], ids=["deeper", "deeper and wider"])
def test_a_plain_network_keeps_its_function(norm, bias, target):
    options = {"norm": norm, "bias": bias}
    plan, error = deepened(Plain(**SHALLOW, **options), Plain(**target, **options))
    assert error <= 1e-4
    inserted = ["conv0_1", "conv1_2", "conv1_3"]
    inserted += [name.replace("conv", "norm") for name in inserted if norm]
    assert roles(plan) == dict.fromkeys(inserted, "identity")
    assert plan.untouched == ()


def test_a_dense_layer_is_inserted_too_and_kernels_may_grow():
    source = Plain(**SHALLOW)
    target = Plain(**WIDER, dense=2, size=5, hidden=20)
    plan, error = deepened(source, target)
    assert error <= 1e-4
    assert roles(plan)["hidden1"] == "identity"


@pytest.mark.parametrize("target", [DEEP, WIDER], ids=["deeper", "deeper and wider"])
@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, "norm"),
        ({"norm": False}, "conv"),
        ({"before": True}, "conv"),
        ({"norm": False, "before": True}, "conv"),
    ],
)
def test_a_residual_network_keeps_its_function(options, ends, target):
    plan, error = deepened(Residual(**SHALLOW, **options), Residual(**target, **options))
    assert error <= 1e-5
    assert roles(plan) == dict.fromkeys([f"{ends}{n}_1" for n in ("0_1", "1_2", "1_3")], "zero")
    assert "within a branch" in reasons(plan)["conv1_3_0/kernel"]  # stays random, so that it learns


def test_an_inserted_branch_learns(key):
    plan, source, target = planned(Residual(**SHALLOW), Residual(**DEEP))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    slope = jax.jit(jax.grad(lambda params: target.fn(params, IMAGES)[0, 0]))(new)["params"]
    assert jnp.abs(slope["norm1_3_1"]["scale"]).max() > 0


def test_channels_pass_through_what_is_inserted():
    plan, *_ = planned(Plain(**SHALLOW), Plain(**WIDER))
    own = sum(axis.own for layer in plan.channels.layers for axis in (layer.reads, layer.writes))
    assert own == 0


@pytest.mark.parametrize(
    ("source", "target"), [("resnet50", "wide_resnet101_2"), ("efficientnet_b0", "efficientnet_b1")]
)
@pytest.mark.slow
def test_networks_of_the_zoo_keep_their_function(key, source, target):
    networks = zoo.network_of(source, 0), zoo.network_of(target, 1)
    plan = tlv_jax.plan_transfer(*networks, methods.NET2NET)
    new = tlv_jax.apply_transfer(plan, key, *networks)
    expected = zoo.logits(source, networks[0].params)
    assert relative_error(zoo.logits(target, new), expected) <= 1e-4


class Short(nn.Module):
    @nn.compact
    def __call__(self, images):
        images = nn.relu(nn.Conv(4, (3, 3), name="conv0_0")(images))
        return nn.Dense(5, name="head")(images.mean((1, 2)))


class Strided(nn.Module):
    @nn.compact
    def __call__(self, images):
        images = nn.relu(nn.Conv(4, (3, 3), name="conv0_0")(images))
        images = nn.relu(nn.Conv(4, (3, 3), (2, 2), name="strided")(images))
        images = nn.relu(nn.LayerNorm(name="normed")(nn.Conv(4, (3, 3), name="late")(images)))
        images = nn.relu(nn.Conv(6, (1, 1), name="wide")(images))
        return nn.Dense(5, name="head")(images.mean((1, 2)))


def test_layers_that_cannot_be_identities_stay_and_say_why():
    plan, *_ = planned(Short(), Strided())
    found = reasons(plan)
    assert "stride" in found["strided/kernel"]
    assert "norm behind it" in found["late/kernel"]
    assert "normalizes" in found["normed/scale"]
    assert "number of channels" in found["wide/bias"]
    assert plan.inserted == ()


class Loop(nn.Module):
    """A convolution, and more of them in a loop over a stack of kernels."""

    length: int

    @nn.compact
    def __call__(self, images):
        images = nn.relu(nn.Conv(4, (3, 3), name="stem")(images))
        if self.length:
            scan = nn.scan(
                lambda conv, images, _: (nn.relu(conv(images)), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.length,
            )
            images, _ = scan(nn.Conv(4, (3, 3), name="stacked"), images, None)
        return nn.Dense(5, name="head")(images.mean((1, 2)))


def test_a_layer_of_a_stack_stays_and_says_why():
    plan, *_ = planned(Loop(0), Loop(2))
    assert "a stack" in reasons(plan)["stacked/kernel"]
    assert plan.inserted == ()


def test_a_gated_branch_is_not_taken_for_one_that_adds():
    plan, *_ = planned(Residual(**SHALLOW, gated=True), Residual(**DEEP, gated=True))
    assert "multiplied" in reasons(plan)["norm1_3_1/scale"]


def test_a_layer_with_a_gate_between_is_no_sum():
    plan, *_ = planned(Residual(**SHALLOW), Residual(**SHALLOW, gated=True))
    assert "multiplied" in reasons(plan)["gate0_0/kernel"]


def test_without_insertion_the_function_is_lost():
    plan, error = deepened(Plain(**SHALLOW), Plain(**DEEP), insert="init")
    assert plan.inserted == ()
    assert error > 0.1
    assert "no source" in reasons(plan)["conv0_1/kernel"]


def test_plans_with_insertions_survive_json_and_print():
    plan, *_ = planned(Residual(**SHALLOW), Residual(**WIDER))
    again = tlv_jax.TransferPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert "inserted: zero" in str(plan)


@pytest.mark.parametrize("family", [Plain, Residual])
def test_under_jit_it_is_the_same(key, family):
    plan, source, target = planned(family(**SHALLOW), family(**WIDER))
    eager = tlv_jax.apply_transfer(plan, key, source, target)
    jitted = jax.jit(tlv_jax.apply_transfer, static_argnums=0)(
        plan, key, source.params, target.params
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), jitted, eager)
    assert {leaf.dtype for leaf in jax.tree.leaves(eager)} == {jnp.dtype(jnp.float32)}
    assert relative_error(logits(target, jitted), logits(source, source.params)) <= 1e-4


def test_the_report_tells_what_was_inserted(key):
    plan, source, target = planned(Plain(**SHALLOW), Plain(**DEEP))
    new = tlv_jax.apply_transfer(plan, key, source, target)
    report = tlv_jax.report(plan, source, target, new)
    assert {row.rule for row in report.rows if row.source is None} == {"identity"}
    assert "(identity)" in str(report)


def channels_first(params, images):
    """Convolutions with kernels `[O, I, H, W]`, and biases `[O, 1, 1]` as in Equinox."""
    for name in sorted(params):
        kernel, bias = params[name]["weight"], params[name]["bias"]
        images = jax.nn.relu(jax.lax.conv(images, kernel, (1, 1), "SAME") + bias[None])
    return images


def test_kernels_with_their_channels_first(key):
    def draw(seed, *widths):
        generator = np.random.default_rng(seed)
        sizes = zip(widths[1:], widths[:-1], strict=True)
        return {
            f"conv{number}": {
                "weight": generator.normal(size=(*size, 3, 3)).astype(np.float32),
                "bias": generator.normal(size=(size[0], 1, 1)).astype(np.float32),
            }
            for number, size in enumerate(sizes)
        }

    images = IMAGES.transpose(0, 3, 1, 2)
    params = draw(0, 3, 4, 2), draw(1, 3, 6, 6, 2, 2)
    source, target = (tlv_jax.trace(channels_first, tree, images) for tree in params)
    plan = tlv_jax.plan_transfer(source, target, methods.NET2NET)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    found, expected = (jax.jit(channels_first)(tree, images) for tree in (new, source.params))
    assert relative_error(found, expected) <= 1e-5
    assert roles(plan) == {"conv1": "identity", "conv3": "identity"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"insert": "dirac"}, "insert='dirac' is not known; expected one of init, identity"),
        ({"channels": None}, "insert='identity' needs channels"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(tlv_jax.OptionError, match=message):
        dataclasses.replace(methods.NET2NET, **changes)


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 4), 1), ((3, 4, 4), 1), ((5, 3, 1, 4), 4), ((1, 1, 2, 6), 3)]
)
def test_the_identity_kernel_hands_its_inputs_on(shape, groups):
    spatial, channels = shape[:-2], shape[-2] * groups
    inputs = np.random.default_rng(0).normal(size=(2, *(7,) * len(spatial), channels))
    kernel = identity_kernel(shape)
    if not spatial:
        outputs = inputs.astype(np.float32) @ kernel
    else:
        letters = "HWD"[: len(spatial)]
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        outputs = jax.lax.conv_general_dilated(
            inputs.astype(np.float32),
            kernel,
            (1,) * len(spatial),
            "SAME",
            dimension_numbers=numbers,
            feature_group_count=groups,
        )
    np.testing.assert_array_equal(outputs, inputs.astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ({"kernel_size": (3, 3)}, True),
        ({"kernel_size": (5, 1)}, True),
        ({"kernel_size": (3, 3), "kernel_dilation": 2}, True),
        ({"kernel_size": (3, 3), "feature_group_count": 3}, True),
        ({"kernel_size": (2, 2)}, False),
        ({"kernel_size": (3, 3), "strides": 2}, False),
        ({"kernel_size": (3, 3), "padding": "VALID"}, False),
        ({"kernel_size": (3, 3), "padding": ((0, 2), (1, 1))}, False),
    ],
)
def test_the_trace_tells_windows_that_stay(settings, stays):
    network = traced(nn.Conv(3, name="conv", **settings))
    (labels,) = network.channels.values()
    assert labels.stays is stays
    shape = jax.eval_shape(network.fn, network.params, IMAGES).shape
    assert network.layers[0].size == shape[1:3]
