"""Several sources in one list: each target layer takes the one that fits it best."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import trees

import tlv_jax
from tlv_jax import ConsistentChannels, Method, matching, rules
from tlv_jax.layers.blocks import flatten_blocks

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

ALL = ("conv", "dense", "norm", "bias")
TARGET = trees.small_network(100, 8, 12)
jitted = jax.jit(tlv_jax.apply_transfer, static_argnums=0)


def test_of_several_sources_each_layer_takes_the_best(key):
    alike = trees.small_network(50, 8, 12)
    sources = [trees.small_network(0, 16, 24, size=5), alike]
    plan = tlv_jax.plan_transfer(sources, TARGET, Method(kinds=ALL))
    assert {source.split("/")[0] for source, _ in plan.pairs} == {"1"}
    new = tlv_jax.apply_transfer(plan, key, sources, TARGET)
    chex.assert_trees_all_equal(new, alike.params)
    chex.assert_trees_all_equal(
        tlv_jax.transfer(sources, TARGET, key=key, method=Method(kinds=ALL)), new
    )
    chex.assert_trees_all_equal(
        jitted(plan, key, [source.params for source in sources], TARGET.params), new
    )


def test_of_equal_sources_the_first_gives():
    plan = tlv_jax.plan_transfer([TARGET, TARGET], TARGET)
    assert plan.pairs[0] == ("0/stem", "stem")


def test_a_list_of_one_network_is_that_network(key):
    source = trees.small_network(0, 16, 24)
    plan = tlv_jax.plan_transfer([source], TARGET)
    assert plan == tlv_jax.plan_transfer(source, TARGET)
    expected = tlv_jax.transfer(source, TARGET, key=key)
    chex.assert_trees_all_equal(tlv_jax.transfer([source], TARGET, key=key), expected)
    chex.assert_trees_all_equal(tlv_jax.apply_transfer(plan, key, [source], TARGET), expected)
    assert tlv_jax.report(plan, [source], TARGET, expected).rows


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_a_list_of_trees_is_a_tree():
    tree = trees.target_tree()
    plan = tlv_jax.plan_transfer([tree, tree], tree, Method(match=matching.ByIndex()))
    assert plan.pairs == (("0/conv1", "conv1"), ("1/conv1", "conv2"))


def test_networks_and_trees_in_one_list_are_refused():
    with pytest.raises(tlv_jax.ParameterTreeError, match="networks alone"):
        tlv_jax.plan_transfer([TARGET, TARGET.params], TARGET)


def test_a_source_of_the_mixture_that_is_not_finite_is_named(key):
    params = {name: dict(leaves) for name, leaves in TARGET.params.items()}
    params["block"]["kernel"] = params["block"]["kernel"] * np.float32(np.nan)
    sources = [trees.small_network(0, 16, 24), dataclasses.replace(TARGET, params=params)]
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="'1/block/kernel' has 576 values"):
        tlv_jax.transfer(sources, TARGET, key=key)


# Of these two the one gives the target's stem, norm and block, the other all that comes after.
FIRST = trees.small_network(0, 10, 30)
SECOND = trees.small_network(50, 24, 14)


def by_name(source, target):
    """Gives each layer the source's of its name; of the first source the stem and block alone."""
    offered = {layer.path: layer for layer in flatten_blocks(source)}
    early = any(path.startswith("0/") for path in offered)
    return tuple(
        tlv_jax.LayerPair(offered[f"{0 if early else 1}/{layer.path}"], layer)
        for layer in flatten_blocks(target)
        if early == (layer.path in ("stem", "norm", "block"))
    )


@pytest.mark.parametrize("rank", ["variance", "magnitude", "trace", "first"])
def test_channels_are_followed_within_each_source(key, rank):
    channels = ConsistentChannels(rank)
    method = Method(match=by_name, rule=rules.Clip(), channels=channels, kinds=ALL)
    sources = [FIRST, SECOND]
    plan = tlv_jax.plan_transfer(sources, TARGET, method)
    new = tlv_jax.apply_transfer(plan, key, sources, TARGET)
    # What the first source gives is what it gives by itself.
    alone = dataclasses.replace(method, match=matching.ByIndex())
    of_first = tlv_jax.transfer(FIRST, TARGET, key=key, method=alone)
    for name in ("stem", "norm", "block"):
        chex.assert_trees_all_equal(new[name], of_first[name])
    # The first layer of the second source cannot follow another's channels: it ranks its own.
    kernel = SECOND.params["out"]["kernel"]
    weight = np.abs(kernel).sum(axis=(0, 1, 3))
    inputs = np.arange(8) if rank == "first" else np.sort(np.argsort(-weight)[:8])
    worth = kernel.var(axis=(0, 1, 2)) if rank == "variance" else np.abs(kernel).sum((0, 1, 2))
    outputs = np.arange(12) if rank == "first" else np.sort(np.argsort(-worth)[:12])
    np.testing.assert_array_equal(new["out"]["kernel"], kernel[:, :, inputs][..., outputs])
    np.testing.assert_array_equal(new["out"]["bias"], SECOND.params["out"]["bias"][outputs])
    # What comes after it follows.
    np.testing.assert_array_equal(new["fc"]["kernel"], SECOND.params["fc"]["kernel"][outputs])
    chex.assert_trees_all_equal(
        jitted(plan, key, [source.params for source in sources], TARGET.params), new
    )
    assert tlv_jax.TransferPlan.from_json(plan.to_json()) == plan
