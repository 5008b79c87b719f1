"""Trainings that start from a fit: of `python -m train --method fit`, and of a comparison."""

import dataclasses
import io

import interrupted
import jax
import numpy as np
import pytest
import small_inputs
from rich.console import Console
from trees import leaves

import tlv_jax
import train
from train.compare import Settings, compare
from train.compare.resolve import resolve as resolve_comparison
from train.compare.starts import start_of
from train.compare.study import prepare
from train.config import DistillOptions, MatchOptions, MethodOptions
from train.data import train_order
from train.datasets import load_dataset
from train.errors import ConfigError
from train.fitting import first_images
from train.networks import keys_of
from train.resolve import resolve
from train.statistics import Statistics

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

FIT = MethodOptions("fit")
HALF = Statistics((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_inputs.save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def shared(folder):
    """What a run and a comparison have alike; images are not normalized as the source expects."""
    inputs = small_inputs.settings_of(folder / "pictures", folder / "source.safetensors")
    return {**inputs, "normalization": str(HALF), "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def config(shared, folder):
    """Of an epoch without a change, so that a training ends with what it starts from."""
    options = {"learning_rate": 0.0, "crossover_rate": 0.0, "baseline": False}
    return train.Config(**shared, **options, method=FIT, out=folder / "runs")


def run(config, **changes):
    output = io.StringIO()
    changed = dataclasses.replace(config, **changes)
    return train.run(changed, console=Console(file=output, width=120)), output.getvalue()


@pytest.fixture(scope="module")
def ran(config):
    return run(config)


@pytest.fixture(scope="module")
def settings(shared, folder):
    extent = {"methods": ("fit", "fit_random"), "seeds": 1, "learning_rates": (1e-3,)}
    return Settings(**shared, **extent, out=folder / "runs")


@pytest.fixture(scope="module")
def study(settings):
    resolved = resolve_comparison(settings)
    return prepare(resolved, load_dataset(resolved), Console(quiet=True))


@pytest.fixture(scope="module")
def fitted(study):
    """The fit that trainings of seed 0 start from, made by hand."""
    images, source = study.splits.train, study.source
    order = train_order(keys_of(0).order, 1, len(images), 8).reshape(-1)  # fewer than 256
    pixels = np.asarray(images.images)[order] / np.float32(255)
    shown = (pixels - source.preprocess.mean) / source.preprocess.std
    count, side = shown.shape[:2]
    enlarged = jax.image.resize(shown, (count, 2 * side, 2 * side, 3), "linear")
    images = ((pixels - HALF.mean) / HALF.std).astype(np.float32)
    target, key = study.target(0).network, keys_of(0).transfer
    return tlv_jax.fit(source.network, target, images, enlarged.astype(np.float32), key=key)


def assert_alike(found, expected):
    """Equal but for rounding."""
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(found[path], leaf, atol=1e-3 * scale, err_msg=path)


def test_a_run_trains_from_the_fit_to_what_the_source_computes_of_its_first_images(ran, fitted):
    result, _ = ran
    (training,) = result.runs
    assert training.name == "transferred"
    start = interrupted.checkpoints_of(result.folder, ("transferred",))["transferred", 3]["params"]
    assert_alike(start["conv"], fitted["params"]["conv"])


def test_the_report_of_the_fit_stands_in_place_of_that_of_a_transfer(ran):
    result, printed = ran
    assert result.folder.name == "squeezenet1_1-Net-folder-0"
    assert result.plan is None
    assert "params/conv" in str(result.report)
    assert "fit: small_network:Net to squeezenet1_1, by 24 training images" in printed
    assert str(result.report) in printed
    assert (result.folder / "report.txt").read_text() == f"{result.report}\n"
    assert (result.folder / "report.json").read_text() == result.report.to_json()
    assert not list(result.folder.glob("plan.*"))


@pytest.mark.slow
def test_a_run_is_resumed(ran, config):
    resumed, printed = run(config, resume=True)
    assert resumed.runs == ran[0].runs
    assert "epoch 1 of 1" not in printed


def test_pictures_that_are_streamed_are_the_same_first_images(config):
    streamed, resident = (
        load_dataset(resolve(dataclasses.replace(config, stream=stream))).train
        for stream in (True, False)
    )
    found, expected = (
        first_images(images, jax.random.key(3), 8, HALF, np.dtype("float32"))
        for images in (streamed, resident)
    )
    assert found.shape == (24, 32, 32, 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": ("squeezenet1_1", "squeezenet1_0"), "source_weights": None},
            "source=squeezenet1_1, squeezenet1_0 with method=fit: .* Give one source",
        ),
        (
            {"method": MethodOptions("fit", match=MatchOptions("index"), head="keep")},
            "method.match=index, method.head=keep with method=fit, which solves for all kernels",
        ),
        ({"distill": DistillOptions("plan")}, "distill=plan with .* method=fit: expected one"),
        (
            {"source": "vit_b_32", "source_weights": None},
            "source='vit_b_32' takes images of one size only",
        ),
    ],
    ids=["several sources", "an option of transfers", "plan", "one size"],
)
def test_what_a_fit_cannot_do_is_refused_before_there_is_a_folder(
    changes, message, config, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        run(config, out=tmp_path / "runs", **changes)
    assert not (tmp_path / "runs").exists()


def test_a_comparison_starts_from_the_same_fit_and_from_one_to_another_source(study, fitted):
    start, control = (start_of(study, name, 0) for name in ("fit", "fit_random"))
    assert start.statistics == control.statistics == HALF
    assert_alike(start.variables, fitted)
    kernels = (each.variables["params"]["conv"]["kernel"] for each in (start, control))
    assert not np.allclose(*kernels, atol=0.1)


def test_a_comparison_solves_for_a_head_by_the_labels_of_the_images_that_are_seen_first(study):
    plain, solved = (start_of(study, name, 0) for name in ("he", "he+head"))
    images, key = study.splits.train, keys_of(0).order
    order = train_order(key, 1, len(images), study.settings.batch_size).reshape(-1)
    seen = (images.images[order] / np.float32(255) - 0.5) / 0.25
    network = dataclasses.replace(study.target(0).network, params=plain.variables)
    expected = tlv_jax.ridge_head(network, seen, np.asarray(images.labels[order]))
    assert_alike(solved.variables, expected)
    layer = network.layers[-1]
    given, before = (leaves(each.variables)[layer.weight] for each in (solved, plain))
    assert not np.allclose(given, before, atol=0.01)


@pytest.mark.slow
def test_the_other_source_has_random_weights(study):
    key = keys_of(0).transfer
    weights = study.draw_source(jax.random.fold_in(key, 1))
    source = dataclasses.replace(study.source, params=weights["params"])
    expected = start_of(dataclasses.replace(study, source=source), "fit", 0).variables
    assert_alike(start_of(study, "fit_random", 0).variables, expected)


@pytest.mark.slow
def test_a_comparison_trains_from_both(settings):
    comparison = compare(settings, console=Console(quiet=True))
    assert comparison.left_out == {}
    assert {row.start for row in comparison.table} == {"fit", "fit_random"}
    assert [row.status for row in comparison.rows] == ["done", "done"]
