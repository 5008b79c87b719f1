"""Where trainings start from."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

import importers
import tlv_jax
from tlv_jax import matching, methods
from train.compare.resolve import resolve
from train.compare.settings import Settings
from train.compare.starts import start_of
from train.compare.study import prepare
from train.data import LabelledImages, Splits
from train.networks import keys_of

CLASSES = ("dark", "light", "other")


@pytest.fixture(scope="module")
def study():
    """The source is also the target, so that it can be fine-tuned."""
    pictures = np.zeros((6, 32, 32, 3), np.uint8)
    part = LabelledImages(pictures, np.arange(6, dtype=np.int32) % 3)
    settings = Settings(
        source="efficientnet_lite0",
        target="efficientnet_lite0",
        image_size=32,
        epochs=1,
        batch_size=2,
    )
    return prepare(resolve(settings), Splits(part, part, part, CLASSES, {}), Console(quiet=True))


def test_every_start_but_he_depends_on_the_source(study):
    own = study.target(0).network.params
    chex.assert_trees_all_equal(start_of(study, "he", 0).variables, own)
    stem = {}
    for name in ("he", "default", "tlvfc", "random_matching", "random_source", "finetune"):
        variables = start_of(study, name, 0).variables
        chex.assert_trees_all_equal_shapes_and_dtypes(variables, own)
        stem[name] = np.asarray(variables["params"]["_conv_stem"]["kernel"])
    given = study.source.params["_conv_stem"]["kernel"]
    assert np.array_equal(stem["default"], given)
    assert np.array_equal(stem["finetune"], given)
    for name in ("he", "tlvfc", "random_source"):
        assert not np.array_equal(stem[name], given)
    assert not np.array_equal(stem["random_source"], stem["he"])


def test_a_seed_draws_the_matching(study):
    source, target = study.source.network, study.target(3).network
    method = dataclasses.replace(methods.DEFAULT, match=matching.Random(3))
    expected = tlv_jax.apply_transfer(
        tlv_jax.plan_transfer(source, target, method), keys_of(3).transfer, source, target
    )
    chex.assert_trees_all_equal(start_of(study, "random_matching", 3).variables, expected)


def test_finetuning_starts_from_all_of_the_targets_weights_but_the_last_layer(study):
    start = start_of(study, "finetune", 1)
    pretrained = importers.load("efficientnet_lite0")
    own = study.target(1).network.params

    def check(path, leaf, given, drawn):
        if "_fc" in jax.tree_util.keystr(path):
            given = drawn
        np.testing.assert_array_equal(leaf, given)

    jax.tree_util.tree_map_with_path(check, start.variables, pretrained.variables, own)
    assert start.statistics.mean == pretrained.preprocess.mean


def test_what_the_source_does_is_named_behind_the_start(study):
    plain, crossed = start_of(study, "default", 0), start_of(study, "default+crossover", 0)
    assert (plain.crossover, crossed.crossover) == (False, True)
    chex.assert_trees_all_equal(plain.variables, crossed.variables)
    both, taught = start_of(study, "default+crossover+distill", 0), start_of(study, "distill", 0)
    assert (both.crossover, both.distill) == (True, True)
    assert (plain.distill, taught.crossover, taught.distill) == (False, False, True)
    chex.assert_trees_all_equal(taught.variables, start_of(study, "he", 0).variables)
