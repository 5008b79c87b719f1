"""Any network of the zoo into any other, from shapes alone, and a sample of the pairs for real."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import trees
from zoo import network_of

import tlv_jax
from importers.weights import WEIGHTS
from tlv_jax import ConsistentChannels, Method, methods, models

# Many pairs are unlike.
pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

NAMES = [name for name in models.names() if not name.startswith("efficientnet_lite")]
METHODS = {
    "default": methods.DEFAULT,
    "every_kind": Method(kinds=("conv", "dense", "norm")),
    "tlvfc": methods.TLVFC,
    "dpiat": methods.DPIAT,
    "weight_selection": methods.WEIGHT_SELECTION,
    "channels": dataclasses.replace(methods.DPIAT, channels=ConsistentChannels()),
}
SMALL = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18"]


def check_planned(source, target, name):
    src, dst = network_of(source), network_of(target)
    plan = tlv_jax.plan_transfer(src, dst, METHODS[name])
    matched = {pair.target.path for pair in plan.layer_pairs}
    assert matched, (source, target)
    if name == "tlvfc":
        assert {layer.path for layer in dst.layers if layer.kind == "conv"} <= matched
    replaced = {path for path, _ in plan.target_leaves}
    stays = {leaf.path for leaf in plan.untouched}
    assert not replaced & stays
    assert replaced | stays == set(trees.leaves(dst.params))
    assert hash(plan) == hash(dataclasses.replace(plan))


@pytest.mark.parametrize("name", METHODS)
def test_small_pairs_are_planned(name):
    for source, target in itertools.permutations(SMALL, 2):
        check_planned(source, target, name)


def test_there_are_6320_pairs():
    assert len(NAMES) * (len(NAMES) - 1) == 6320


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("source", NAMES)
def test_every_pair_is_planned(source, name):
    for target in NAMES:
        if target != source:
            check_planned(source, target, name)


@pytest.mark.slow
@pytest.mark.parametrize("source", NAMES)
def test_every_pair_of_bare_trees_is_planned(source):
    for target in NAMES:
        if target != source:
            plan = tlv_jax.plan_transfer(trees.shapes(source), trees.shapes(target))
            assert plan.layer_pairs, (source, target)


def families():
    """Names by the class that builds them, the smallest first."""
    by_class = {}
    for name in NAMES:
        by_class.setdefault(type(models.create(name)).__name__, []).append(name)
    return by_class


def sample(count):
    """Pairs that have every family as source and as target: the smallest members, all by all."""
    smallest = [
        min(names, key=lambda name: WEIGHTS[name][0].parameters) for names in families().values()
    ]
    pairs = list(itertools.permutations(smallest, 2))
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:count]]


def check_applied(source, target, name):
    src, dst = network_of(source, 0), network_of(target, 1)
    plan = tlv_jax.plan_transfer(src, dst, METHODS[name])
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), src, dst)
    assert jax.tree.structure(new) == jax.tree.structure(dst.params)
    before, after = trees.leaves(dst.params), trees.leaves(new)
    for path, leaf in after.items():
        assert (leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype)
        assert np.isfinite(leaf).all()
    for leaf in plan.untouched:
        assert after[leaf.path] is before[leaf.path]
    for pair in plan.layer_pairs:
        weight = pair.target.weight
        assert not np.array_equal(before[weight], after[weight]), (source, target, weight)


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        ("squeezenet1_1", "shufflenet_v2_x0_5", "tlvfc"),
        ("shufflenet_v2_x0_5", "squeezenet1_1", "dpiat"),
        ("mobilenet_v3_small", "squeezenet1_1", "every_kind"),
        ("shufflenet_v2_x0_5", "mobilenet_v3_small", "channels"),
    ],
)
def test_small_pairs_are_applied(source, target, name):
    check_applied(source, target, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        pytest.param(*pair, name, id="-".join((*pair, name)))
        for pair, name in zip(sample(210), itertools.cycle(METHODS))
    ],
)
def test_a_sample_of_the_pairs_is_applied(source, target, name):
    check_applied(source, target, name)


def test_the_sample_has_every_family_on_both_sides():
    pairs = sample(210)
    count = len(families())
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == count
