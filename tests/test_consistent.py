"""Channels chosen once for all layers that share them."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
import zoo
from every_way import IMAGES, NHWC, narrowed
from helpers import relative_error

import tlv_jax
from tlv_jax import ConsistentChannels, Method, layers, matching, rules

ALL = ("conv", "dense", "norm", "bias")
BY_INDEX = Method(standardize=layers.standardize_flat, match=matching.ByIndex(), kinds=ALL)


def conv(inputs, outputs, size=3, **options):
    outputs = nn.Conv(outputs, (size, size), **options)(inputs)
    return nn.BatchNorm(use_running_average=True)(outputs)


def residual(images, width):
    hidden = nn.relu(conv(images, width))
    hidden = nn.relu(hidden + conv(nn.relu(conv(hidden, 2 * width)), width))
    shortcut = conv(hidden, 2 * width, 1, strides=2)
    return nn.relu(shortcut + conv(hidden, 2 * width, strides=2)).mean((1, 2))


def concatenated(images, width):
    hidden = conv(images, width)
    for _ in range(2):
        hidden = jnp.concatenate((hidden, conv(nn.relu(hidden), width)), axis=-1)
    return hidden.mean((1, 2))


def grouped(images, width):
    hidden = nn.relu(conv(images, 2 * width))
    return nn.relu(conv(hidden, 4 * width, feature_group_count=2)).mean((1, 2))


def gated(images, width):
    hidden = conv(images, width)
    inner = nn.relu(conv(hidden, 3 * width, 1))
    inner = nn.relu(conv(inner, 3 * width, feature_group_count=3 * width))
    gate = nn.relu(nn.Conv(width, (1, 1))(inner.mean((1, 2), keepdims=True)))
    gate = nn.sigmoid(nn.Conv(3 * width, (1, 1))(gate))
    return (hidden + conv(inner * gate, width, 1)).mean((1, 2))


def shuffled(images, width):
    kept, branch = jnp.split(nn.relu(conv(images, 2 * width)), 2, axis=-1)
    branch = conv(nn.relu(conv(branch, width, 1)), width, feature_group_count=width)
    joined = jnp.stack((kept, branch), axis=-1).reshape(*kept.shape[:-1], 2 * width)
    return nn.relu(conv(joined, width)).mean((1, 2))


def flattened(images, width):
    hidden = nn.max_pool(nn.relu(conv(images, width)), (4, 4), (4, 4))
    hidden = hidden.reshape(hidden.shape[0], -1)
    return nn.relu(nn.Dense(2 * width)(hidden))


def read_again(images, width):
    """The image's channels go into a norm, and stand beside others later."""
    images = nn.BatchNorm(use_running_average=True)(images)
    hidden = jnp.concatenate((images, nn.relu(conv(images, width))), axis=-1)
    hidden = nn.BatchNorm(use_running_average=True)(hidden)
    return nn.relu(conv(hidden, width)).mean((1, 2))


class Network(nn.Module):
    """A body as above, and a head."""

    body: Callable
    width: int = 4

    @nn.compact
    def __call__(self, images):
        return nn.Dense(5, name="head")(self.body(images, self.width))


BODIES = [residual, concatenated, grouped, gated, shuffled, flattened, read_again]
of_bodies = pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)


@functools.cache
def shapes_of(model):
    return tlv_jax.trace(model.apply, jax.eval_shape(model.init, jax.random.key(0), IMAGES), IMAGES)


def drawn(seed, body, width=4):
    network = shapes_of(Network(body, width))
    return dataclasses.replace(network, params=trees.random_variables(network.params, seed))


@functools.cache
def compiled(fn):
    return jax.jit(fn)


def logits(network, params=None):
    return compiled(network.fn)(network.params if params is None else params, IMAGES)


def carried(source, target, channels, method=BY_INDEX):
    method = dataclasses.replace(method, channels=channels)
    plan = tlv_jax.plan_transfer(source, target, method)
    return plan, tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)


def own_axes(plan):
    """How many axes do not follow their neighbours."""
    return sum(axis.own for layer in plan.channels.layers for axis in (layer.reads, layer.writes))


@of_bodies
@pytest.mark.parametrize("method", [BY_INDEX, Method(kinds=ALL)], ids=["index", "default"])
def test_a_copy_of_the_network_computes_the_same(body, method):
    source, target = drawn(0, body), drawn(1, body)
    plan, new = carried(source, target, ConsistentChannels(), method)
    assert own_axes(plan) == 0
    assert relative_error(logits(target, new), logits(source)) <= 1e-6


# A wider network is divided into groups and halves at other places, where copies do not follow.
@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("body", [residual, concatenated, gated, flattened, read_again])
def test_a_widened_network_computes_the_same(body, width):
    source, target = drawn(0, body), drawn(1, body, width)
    plan, new = carried(source, target, ConsistentChannels(grow="copy"))
    assert own_axes(plan) == 0
    assert relative_error(logits(target, new), logits(source)) <= 1e-5


@pytest.mark.parametrize("rank", ["variance", "magnitude", "trace", "first"])
@pytest.mark.parametrize("seed", range(3))
def test_a_narrower_network_keeps_the_function_of_what_it_keeps(rank, seed):
    small, source, target = narrowed(seed, rank)
    _, new = carried(source, target, ConsistentChannels(rank=rank), Method(kinds=ALL))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), new, small)
    assert relative_error(logits(target, new), logits(source)) <= 1e-5


def test_the_same_transfer_without_it_loses_the_function():
    _, source, target = narrowed(0, "variance")
    method = Method(kinds=ALL, rule=rules.Variance(shuffle=False))
    _, new = carried(source, target, None, method)
    assert relative_error(logits(target, new), logits(source)) > 0.1


KEPT = {"variance": [1, 3], "magnitude": [0, 1], "trace": [0, 3], "first": [0, 1]}


@pytest.mark.parametrize("rank", KEPT)
def test_ranks_keep_the_channels_that_they_name(rank):
    def fn(params, images):
        hidden = images @ params["a"]["kernel"]
        return (hidden + images @ params["b"]["kernel"]) @ params["c"]["kernel"]

    # Outputs in columns. Whatever is written by a and by b counts in each as a share of the whole.
    a = np.array([[4, 2, 0, 5], [4, -2, 0, 1]], np.float32)
    b = np.array([[1, 5, 1, 0], [1, -5, 1, 0]], np.float32)
    source, target = (
        {
            "a": {"kernel": a[:, :width]},
            "b": {"kernel": b[:, :width]},
            "c": {"kernel": np.arange(width, dtype=np.float32)[:, None]},
        }
        for width in (4, 2)
    )
    networks = [
        tlv_jax.trace(fn, params, np.ones((1, 2), np.float32)) for params in (source, target)
    ]
    _, new = carried(*networks, ConsistentChannels(rank=rank))
    assert new["c"]["kernel"][:, 0].tolist() == KEPT[rank]
    np.testing.assert_array_equal(new["a"]["kernel"], a[:, KEPT[rank]])
    np.testing.assert_array_equal(new["b"]["kernel"], b[:, KEPT[rank]])


def test_what_the_source_cannot_give_keeps_its_initial_weights():
    source, target = drawn(0, flattened), drawn(1, flattened, 6)
    _, new = carried(source, target, ConsistentChannels(grow="init"))
    kernel = new["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel[..., :4], source.params["params"]["Conv_0"]["kernel"])
    np.testing.assert_array_equal(
        kernel[..., 4:], target.params["params"]["Conv_0"]["kernel"][..., 4:]
    )


@pytest.mark.parametrize("rank", KEPT)
@pytest.mark.parametrize("left_out", [1, 2, 3], ids=["stem", "its norm too", "a block's first too"])
def test_a_matching_may_leave_out_the_first_that_write_a_channel(rank, left_out):
    def match(source, target):
        return matching.ByIndex()(source, target)[left_out:]

    source, target = drawn(0, residual, 6), drawn(1, residual, 4)
    method = dataclasses.replace(BY_INDEX, match=match)
    plan, new = carried(source, target, ConsistentChannels(rank=rank), method)
    stem, given = (tree["params"]["Conv_0"]["kernel"] for tree in (target.params, new))
    np.testing.assert_array_equal(given, stem)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    assert own_axes(plan) <= 2


@pytest.mark.parametrize(
    ("source", "target", "channels"),
    [
        ((residual, 6), (residual, 4), ConsistentChannels()),
        ((residual, 4), (residual, 6), ConsistentChannels(grow="copy")),
        ((grouped, 6), (grouped, 4), ConsistentChannels(rank="trace")),
        ((gated, 4), (shuffled, 6), ConsistentChannels(rank="magnitude")),
    ],
    ids=["narrower", "wider", "grouped", "another family"],
)
def test_under_jit_it_is_the_same(key, source, target, channels):
    source, target = drawn(0, *source), drawn(1, *target)
    plan, new = carried(source, target, channels)

    @jax.jit
    def transfer(key, given, own):
        return tlv_jax.apply_transfer(plan, key, given, own)

    jitted = transfer(key, source.params, target.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), jitted, new)


@pytest.mark.parametrize("body", [residual, read_again])
def test_other_families_are_served_as_far_as_their_graphs_agree(body):
    source, target = drawn(0, body, 6), drawn(1, concatenated)
    plan, new = carried(source, target, ConsistentChannels(), Method(kinds=ALL))
    assert 0 < plan.channels.consistent < 1
    assert "of the axes follow their neighbours" in str(plan)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, target.params)


# Residual adds; concatenations; gates and depthwise convolutions; splits and shuffles; flattening.
@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11"]
)
def test_channels_of_the_zoo_are_followed_throughout(name):
    network = zoo.network_of(name)
    first, *others = network.channels.values()
    assert set(first.reads) == {-1}
    assert not any(-1 in labels.reads for labels in others)
    plan = tlv_jax.plan_transfer(network, network, Method(channels=ConsistentChannels(), kinds=ALL))
    assert own_axes(plan) == 0


def test_a_wider_member_of_the_zoo_follows_its_source():
    networks = [zoo.network_of(name) for name in ("resnet50", "wide_resnet50_2")]
    plan = tlv_jax.plan_transfer(*networks, Method(channels=ConsistentChannels(), kinds=ALL))
    assert own_axes(plan) == 0


def test_plans_with_channels_survive_json_and_compare_by_value():
    plan, _ = carried(drawn(0, shuffled), drawn(1, shuffled), ConsistentChannels())
    again = tlv_jax.TransferPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)


@pytest.mark.parametrize("order", [1, -1])
def test_channels_that_are_added_at_two_places_are_one(order):
    def fn(params, images):
        a, b, c = (images @ params[name]["kernel"] for name in "abc")
        upper_and_lower = jnp.concatenate((a[:, :4], b[:, 4:]), axis=1)
        first, second = (upper_and_lower, c)[::order]
        return first + second

    params = {name: {"kernel": np.ones((3, 3), np.float32)} for name in "abc"}
    channels = tlv_jax.trace(fn, params, IMAGES).channels
    assert channels["a"].writes == channels["b"].writes == channels["c"].writes


def test_a_shuffle_is_refused():
    with pytest.raises(tlv_jax.OptionError, match="shuffle=False"):
        Method(channels=ConsistentChannels(), rule=rules.Variance())


@pytest.mark.parametrize("bare", [0, 1])
def test_a_bare_tree_is_refused(bare):
    networks = [zoo.network_of("vgg11"), zoo.network_of("vgg11")]
    networks[bare] = trees.shapes("vgg11")
    method = Method(channels=ConsistentChannels())
    with pytest.raises(tlv_jax.OptionError, match=r"bare tree\. Pass networks from tlv_jax\.trace"):
        tlv_jax.plan_transfer(*networks, method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": "size"}, "rank='size' is not known; expected one of variance, magnitude"),
        ({"grow": "zero"}, "grow='zero' is not known; expected one of init, copy"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(tlv_jax.OptionError, match=message):
        ConsistentChannels(**settings)


RECORDED = np.load(Path(__file__).parent / "golden" / "iat_trace.npz")


def sequence(params, images):
    """Convs, perhaps each with a norm, in the order of their numbers."""
    for name in sorted(params, key=int):
        parts = {part: array[None, None, None] for part, array in params[name].items()}
        if "kernel" in parts:
            images = jax.lax.conv_general_dilated(
                images, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=NHWC
            )
        else:
            images = images * parts["scale"]
        images = jax.nn.relu(images + parts["bias"] if "bias" in parts else images)
    return images


def recorded_network(case, part):
    params = {}
    for name in RECORDED.files:
        if name.startswith(f"{case}.{part}."):
            layer, leaf = name.split(".")[2:]
            array = RECORDED[name]
            if array.ndim == 4:
                params.setdefault(layer, {})["kernel"] = array.transpose(2, 3, 1, 0)
            else:
                params.setdefault(layer, {})["scale" if leaf == "weight" else leaf] = array
    return tlv_jax.trace(sequence, params, IMAGES)


@pytest.mark.parametrize("case", ["narrower", "norms"])
def test_the_trace_rule_keeps_along_a_sequence_what_was_recorded(case):
    source, target, expected = (recorded_network(case, part) for part in ("src", "dst", "out"))
    method = dataclasses.replace(BY_INDEX, rule=rules.Trace())
    _, new = carried(source, target, ConsistentChannels(rank="trace"), method)
    jax.tree.map(np.testing.assert_array_equal, new, expected.params)


@pytest.mark.parametrize("rank", ["variance", "first"])
def test_a_depthwise_kernel_reads_what_it_writes_where_the_graphs_disagree(rank):
    def fn(params, images):
        def conv(name, inputs, groups=1):
            return jax.lax.conv_general_dilated(
                inputs,
                params[name],
                (1, 1),
                "SAME",
                dimension_numbers=NHWC,
                feature_group_count=groups,
            )

        hidden = conv("stem", images)
        hidden = conv("depthwise", hidden, hidden.shape[-1])
        return hidden.sum() + (conv("side", images).sum() if "side" in params else 0)

    def network(seed, **widths):
        inputs = {"depthwise": 1, "stem": 3, "side": 3}
        params = {
            name: trees.normal(seed + number, 3, 3, inputs[name], width)
            for number, (name, width) in enumerate(widths.items())
        }
        return tlv_jax.trace(fn, params, IMAGES)

    def match(source, target):
        """The stem's source is not what the source's depthwise kernel reads."""
        given = {layer.path: layer for layer in source}
        return tuple(
            tlv_jax.LayerPair(given["side" if own.path == "stem" else own.path], own)
            for own in target
        )

    source = network(0, stem=9, depthwise=9, side=8)
    target = network(10, stem=5, depthwise=5)
    method = Method(standardize=layers.standardize_flat, match=match)
    _, new = carried(source, target, ConsistentChannels(rank=rank), method)
    kernel = source.params["depthwise"]
    largest = np.sort(np.argsort(np.abs(kernel).sum((0, 1, 2)))[4:])
    kept = np.arange(5) if rank == "first" else largest
    np.testing.assert_array_equal(new["depthwise"], kernel[..., kept])
