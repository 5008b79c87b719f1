"""The LSUV start of a comparison: the target alone, and the images that it is trained on."""

import numpy as np
import pytest
import small_inputs
from rich.console import Console
from trees import leaves

from tlv_jax.layers.activations import activations
from train.augment import normalize
from train.compare import Settings, compare
from train.compare.resolve import resolve
from train.compare.starts import start_of
from train.compare.study import prepare
from train.data import train_order
from train.datasets import load_dataset
from train.networks import keys_of


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    inputs = small_inputs.save_inputs(tmp_path_factory.mktemp("inputs"))
    return Settings(
        **small_inputs.settings_of(inputs / "pictures", inputs / "source.safetensors"),
        epochs=1,
        batch_size=8,
        methods=("lsuv",),
        seeds=1,
        learning_rates=(1e-3,),
        out=inputs / "runs",
    )


@pytest.fixture(scope="module")
def study(settings):
    resolved = resolve(settings)
    return prepare(resolved, load_dataset(resolved), Console(quiet=True))


def test_layers_write_with_deviation_one_on_the_images_of_the_first_batches(study):
    start, network = start_of(study, "lsuv", 1), study.target(1).network
    images = study.splits.train
    order = train_order(keys_of(1).order, 1, len(images), 8).reshape(-1)  # fewer than 256
    seen = normalize(images.images[order], *start.statistics, study.dtype)
    paths = [layer.path for layer in network.layers if layer.kind != "norm"]
    calls = activations(network.fn, start.variables, seen, paths=paths)
    assert [np.std(call.writes) for (call,) in calls.values()] == pytest.approx([1, 1], rel=0.01)


def test_only_kernels_differ_from_the_targets_own_initialization_and_seeds_from_each_other(study):
    own, first, second = (
        leaves(start_of(study, name, seed).variables)
        for name, seed in (("he", 0), ("lsuv", 0), ("lsuv", 1))
    )
    for path, leaf in own.items():
        kernel = path.endswith("kernel")
        assert np.array_equal(leaf, first[path]) != kernel, path
        assert np.array_equal(first[path], second[path]) != kernel, path


def test_a_comparison_trains_from_it(settings):
    comparison = compare(settings, console=Console(quiet=True))
    assert {row.start for row in comparison.table} == {"lsuv"}
    assert comparison.left_out == {}
    assert [row.status for row in comparison.rows] == ["done"]
