"""Channels chosen once for all layers that share them."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from helpers import relative_error
from zoo import graph_of, logits, variables_of

import tlv_jax
from tlv_jax import rules
from tlv_jax.consistency import Table

ALL = ("conv", "dense", "norm", "bias")
SETTINGS = {
    "standardize": tlv_jax.standardize_blocks,
    "match": tlv_jax.match_by_score,
    "head": "keep",
    "kinds": ALL,
}


def carried(source, target, **choice):
    settings = {**SETTINGS, **choice.pop("settings", {})}
    channels = tlv_jax.ConsistentChannels(graph_of(source), graph_of(target), **choice)
    variables = variables_of(source, 0), variables_of(target, 1)
    plan = tlv_jax.plan_transfer(*variables, channels=channels, **settings)
    return plan, tlv_jax.apply_transfer(plan, jax.random.key(0), *variables)


# Residual adds; concatenations; gates and depthwise convolutions; splits and shuffles; flattening.
NAMES = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11"]


@pytest.mark.parametrize("name", [*NAMES, pytest.param("densenet121", marks=pytest.mark.slow)])
def test_a_copy_of_the_network_computes_the_same(name):
    plan, new = carried(name, name)
    assert plan.channels.consistent > 0.95
    assert relative_error(logits(name, new), logits(name, variables_of(name, 0))) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_knows_what_it_reads_but_the_first(name):
    first, *others = graph_of(name).values()
    assert set(first.reads) == {-1}
    assert not any(-1 in labels.reads for labels in others)


@pytest.mark.parametrize(
    ("source", "target", "settings"),
    [
        ("resnet50", "wide_resnet50_2", {}),
        (
            "mnasnet0_5",
            "mnasnet1_0",
            {"standardize": tlv_jax.standardize_flat, "match": tlv_jax.match_by_index},
        ),
    ],
)
def test_a_widened_network_computes_the_same(source, target, settings):
    plan, new = carried(source, target, grow="copy", settings=settings)
    assert plan.channels.consistent > 0.95
    expected = logits(source, variables_of(source, 0))
    assert relative_error(logits(target, new), expected) <= 1e-4


def network(params, images):
    """Every way in which channels are shared. `[B, H, W, 3] -> [B, N]`."""

    def conv(name, inputs, groups=1):
        outputs = jax.lax.conv_general_dilated(
            inputs,
            params[name]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return outputs + params[name]["bias"].reshape(1, 1, 1, -1)

    def norm(name, inputs):
        scale, bias, mean, var = (
            params[name][part].reshape(1, 1, 1, -1) for part in ("scale", "bias", "mean", "var")
        )
        return (inputs - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias

    stem = jax.nn.relu(norm("norm", conv("stem", images)))
    branch = jax.nn.relu(conv("depthwise", conv("expand", stem), params["expand"]["bias"].size))
    gate = jax.nn.sigmoid(conv("gate", branch.mean((1, 2), keepdims=True)))
    added = stem + conv("project", branch * gate)
    joined = jnp.concatenate((added, jax.nn.relu(conv("side", stem))), axis=-1)
    pooled = joined.reshape(*joined.shape[:1], 2, 4, 2, 4, -1).mean((2, 4))
    flat = pooled.reshape(pooled.shape[0], -1)
    return flat @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


SPACES = {"stem": "a", "expand": "b", "side": "c", "gate": "b", "project": "a", "depthwise": "b"}


def draw(seed, a, b, c):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    def layer(size, inputs, outputs):
        kernel = normal(size, size, inputs, outputs) / np.float32(np.sqrt(size * size * inputs))
        return {"kernel": kernel, "bias": normal(outputs)}

    return {
        "stem": layer(3, 3, a),
        "norm": {"scale": normal(a), "bias": normal(a), "mean": normal(a), "var": normal(a) ** 2},
        "expand": layer(1, a, b),
        "depthwise": layer(3, 1, b),
        "gate": layer(1, b, b),
        "project": layer(1, b, a),
        "side": layer(3, a, c),
        "head": {"kernel": normal(4 * (a + c), 5) / 4, "bias": normal(5)},
    }


def embedded(small, seed, sizes):
    """The small network within a wider one, at random places and in the same order.

    What else the wider network has is computed from small weights and read by nobody.
    """
    wide = jax.tree.map(lambda leaf: leaf * np.float32(0.01), draw(seed, **sizes))
    generator = np.random.default_rng(seed + 1)
    widths = {"a": small["stem"]["bias"].size, "b": small["gate"]["bias"].size}
    widths["c"] = small["side"]["bias"].size
    places = {
        space: np.sort(generator.permutation(sizes[space])[: widths[space]]) for space in "abc"
    }
    reads = {"expand": "a", "gate": "b", "project": "b", "side": "a"}
    for name, space in SPACES.items():
        inputs = places[reads[name]] if name in reads else np.arange(small[name]["kernel"].shape[2])
        kernel = wide[name]["kernel"]
        if name in reads:
            others = np.setdiff1d(np.arange(kernel.shape[2]), inputs)
            kernel[:, :, others] = 0
        kernel[:, :, inputs[:, None], places[space][None]] = small[name]["kernel"]
        wide[name]["bias"][places[space]] = small[name]["bias"]
    for part in small["norm"]:
        wide["norm"][part][places["a"]] = small["norm"][part]
    joined = np.concatenate((places["a"], sizes["a"] + places["c"]))
    every = np.concatenate([joined + pixel * (sizes["a"] + sizes["c"]) for pixel in range(4)])
    wide["head"]["kernel"][:] = 0
    wide["head"]["kernel"][every] = small["head"]["kernel"]
    wide["head"]["bias"] = small["head"]["bias"]
    return wide


def of_network(params):
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return tlv_jax.trace_channels(network, params, images)


@pytest.mark.parametrize("rank", ["variance", "magnitude"])
@pytest.mark.parametrize("seed", range(3))
def test_a_narrower_network_keeps_the_function_of_what_it_keeps(rank, seed):
    small = draw(seed, a=6, b=8, c=5)
    source = embedded(small, seed, {"a": 11, "b": 13, "c": 7})
    target = draw(seed + 7, a=6, b=8, c=5)
    channels = tlv_jax.ConsistentChannels(of_network(source), of_network(target), rank=rank)
    plan = tlv_jax.plan_transfer(
        source,
        target,
        src_layers=tlv_jax.trace_layers(network, source, np.zeros((1, 8, 8, 3), np.float32)),
        dst_layers=tlv_jax.trace_layers(network, target, np.zeros((1, 8, 8, 3), np.float32)),
        channels=channels,
        head="keep",
        kinds=ALL,
    )
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), new, small)
    images = np.random.default_rng(9).normal(size=(2, 8, 8, 3)).astype(np.float32)
    assert relative_error(network(new, images), network(source, images)) <= 1e-5


def test_the_same_transfer_without_it_loses_the_function():
    small = draw(0, a=6, b=8, c=5)
    source, target = embedded(small, 0, {"a": 11, "b": 13, "c": 7}), draw(7, a=6, b=8, c=5)
    rule = functools.partial(rules.variance, shuffle=False)
    plan = tlv_jax.plan_transfer(source, target, rule=rule, head="keep", kinds=ALL)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    images = np.random.default_rng(9).normal(size=(2, 8, 8, 3)).astype(np.float32)
    assert relative_error(network(new, images), network(source, images)) > 0.1


def test_other_families_are_served_as_far_as_their_graphs_agree():
    plan, new = carried("resnet18", "squeezenet1_1")
    assert 0 < plan.channels.consistent < 1
    assert "of the axes follow their neighbours" in str(plan)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    expected = jax.tree.map(np.shape, variables_of("squeezenet1_1", 1))
    assert jax.tree.map(np.shape, new) == expected


def test_plans_with_channels_survive_json_and_compare_by_value():
    plan, _ = carried("squeezenet1_1", "squeezenet1_1")
    again = tlv_jax.TransferPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)


def test_tables_hold_their_array():
    array = np.arange(-3, 9).reshape(3, 4)
    np.testing.assert_array_equal(Table.of(array).array(), array)
    assert Table.of(array) == Table.of(array.copy())


def test_a_shuffle_is_refused():
    channels = tlv_jax.ConsistentChannels(graph_of("vgg11"), graph_of("vgg11"))
    shapes = trees.shapes("vgg11")
    with pytest.raises(tlv_jax.OptionError, match="shuffle=False"):
        tlv_jax.plan_transfer(shapes, shapes, channels=channels, rule=rules.variance)


RECORDED = np.load(Path(__file__).parent / "golden" / "iat_trace.npz")


class Sequence(nn.Module):
    """Convs, perhaps each with a norm, named as they were recorded."""

    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    norms: bool

    @nn.compact
    def __call__(self, images):
        step = 3 if self.norms else 2
        for number, (width, size) in enumerate(zip(self.widths, self.sizes, strict=True)):
            conv = nn.Conv(width, (size, size), use_bias=not self.norms, name=str(step * number))
            images = conv(images)
            if self.norms:
                norm = nn.BatchNorm(use_running_average=True, name=str(step * number + 1))
                images = norm(images)
            images = nn.relu(images)
        return images


def recorded_tree(case, part):
    tree = {}
    for name in RECORDED.files:
        if not name.startswith(f"{case}.{part}."):
            continue
        layer, leaf = name.split(".")[2:]
        array = RECORDED[name]
        if array.ndim == 4:
            tree.setdefault(layer, {})["kernel"] = array.transpose(2, 3, 1, 0)
        else:
            tree.setdefault(layer, {})["scale" if leaf == "weight" else leaf] = array
    return {"params": tree}


@pytest.mark.parametrize("case", ["narrower", "norms"])
def test_the_trace_rule_keeps_along_a_sequence_what_was_recorded(key, case):
    settings = {
        "src": Sequence((8, 12, 10), (3, 3, 3), case == "norms"),
        "dst": Sequence((5, 7, 6), (3, 5, 3) if case == "norms" else (3, 3, 3), case == "norms"),
    }
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    graphs = []
    for model in settings.values():
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        graphs.append(tlv_jax.trace_channels(model.apply, shapes, images))
    source, target, expected = (recorded_tree(case, part) for part in ("src", "dst", "out"))
    plan = tlv_jax.plan_transfer(
        source,
        target,
        match=tlv_jax.match_by_index,
        rule=rules.trace,
        channels=tlv_jax.ConsistentChannels(*graphs, rank="trace"),
        kinds=ALL,
    )
    assert tlv_jax.TransferPlan.from_json(plan.to_json()) == plan
    new = tlv_jax.apply_transfer(plan, key, source, target)
    jax.tree.map(np.testing.assert_array_equal, new, expected)
