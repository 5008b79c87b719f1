"""Any network of the zoo into any other, from shapes alone, and a sample of the pairs for real."""

import functools
import itertools

import jax
import numpy as np
import pytest
import trees
from helpers import import_torchvision

import tlv_jax
from importers.weights import WEIGHTS
from tlv_jax import models

torchvision = import_torchvision()
NAMES = torchvision.models.list_models(module=torchvision.models)
PRESETS = {
    "default": {},
    "every_kind": {"kinds": ("conv", "dense", "norm")},
    "tlvfc": tlv_jax.presets.tlvfc(),
    "dpiat": tlv_jax.presets.dpiat(),
}


@functools.cache
def layers_of(name):
    return tlv_jax.standardization.find_layers(trees.shapes(name, 1000)["params"], name=name)[0]


def plan_of(source, target, preset):
    return tlv_jax.plan_transfer(
        trees.shapes(source, 1000)["params"],
        trees.shapes(target, 1000)["params"],
        src_layers=layers_of(source),
        dst_layers=layers_of(target),
        **PRESETS[preset],
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("source", NAMES)
def test_every_pair_is_planned(source, preset):
    for target in NAMES:
        if target == source:
            continue
        plan = plan_of(source, target, preset)
        kinds = {layer.kind for layer in layers_of(source)}
        convs = [layer for layer in layers_of(target) if layer.kind == "conv"]
        matched = {pair.target.path for pair in plan.layer_pairs}
        if preset == "tlvfc" and "conv" in kinds:
            assert {layer.path for layer in convs} <= matched, (source, target)
        assert plan.layer_pairs, (source, target)
        assert hash(plan) == hash(plan)


def families():
    """Names by the class that builds them, the smallest first."""
    by_class = {}
    for name in NAMES:
        by_class.setdefault(type(models.create(name)).__name__, []).append(name)
    return by_class


def size_of(name):
    return WEIGHTS[name][0].parameters


def sample(count):
    """Pairs that have every family as source and as target: the smallest members, all by all."""
    smallest = [min(names, key=size_of) for names in families().values()]
    pairs = [pair for pair in itertools.product(smallest, repeat=2) if pair[0] != pair[1]]
    generator = np.random.default_rng(0)
    return [pairs[i] for i in generator.permutation(len(pairs))[:count]]


@functools.cache
def random_params(name, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape, np.float32) * np.float32(0.05),
        trees.shapes(name, 10)["params"],
    )


def check_applied(source, target, preset):
    src, dst = random_params(source, 0), random_params(target, 1)
    plan = tlv_jax.plan_transfer(src, dst, **PRESETS[preset])
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), src, dst)
    assert jax.tree.structure(new) == jax.tree.structure(dst)
    for before, after in zip(jax.tree.leaves(dst), jax.tree.leaves(new), strict=True):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        assert np.isfinite(after).all()
    leaves, changed = (tlv_jax.paths.array_leaves(tree, name="t") for tree in (dst, new))
    for pair in plan.layer_pairs:
        weight = pair.target.weight
        assert not np.array_equal(leaves[weight], changed[weight]), (source, target, weight)


QUICK = [
    ("squeezenet1_1", "shufflenet_v2_x0_5", "tlvfc"),
    ("shufflenet_v2_x0_5", "squeezenet1_1", "dpiat"),
    ("mobilenet_v3_small", "mnasnet0_5", "dpiat"),
]


@pytest.mark.parametrize(("source", "target", "preset"), QUICK)
def test_small_pairs_are_applied(source, target, preset):
    check_applied(source, target, preset)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "preset"),
    [
        pytest.param(*pair, preset, id="-".join((*pair, preset)))
        for pair, preset in zip(sample(210), itertools.cycle(PRESETS))
    ],
)
def test_a_sample_of_the_pairs_is_applied(source, target, preset):
    check_applied(source, target, preset)
    jax.clear_caches()


def test_the_sample_has_every_family_on_both_sides():
    pairs = sample(210)
    count = len(families())
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == count
