"""Normalization by the source's statistics, by the data set's, and by given numbers."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_inputs
from PIL import Image
from rich.console import Console
from small_network import Net

import tlv_jax
import train
from train.augment import augment, normalize
from train.config import Config
from train.data import LabelledImages
from train.datasets import load_dataset
from train.errors import ConfigError, DataError
from train.linen_target import linen_target
from train.normalization import parse_normalization, seen_by_source, statistics_of
from train.resolve import resolve
from train.statistics import Statistics, main, measure
from train.step import Task, initial_state, make_train_step
from train.support import Support

SOURCE = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OTHER = Statistics((0.5, 0.1, 0.9), (0.1, 0.5, 1.0))
FLOAT32 = jnp.dtype("float32")


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (64, 5, 7, 3), (150, 8, 8, 3), (70, 8, 8, 1)])
def test_statistics_are_those_of_numpy(shape):
    images = pictures(*shape)
    found = measure(images)
    scaled = np.broadcast_to(images / 255, (*shape[:3], 3))
    np.testing.assert_allclose(found.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_statistics_of_nearly_equal_pixels_are_exact():
    images = np.full((100, 40, 40, 3), 250, np.uint8)
    images[99, 39, 39] = 251  # of 160,000
    np.testing.assert_allclose(measure(images).std, 0.0025 / 255, rtol=1e-5)
    np.testing.assert_allclose(measure(images).std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_images_of_one_colour_are_refused():
    images = pictures(4, 8, 8, 3)
    images[..., 1] = 7
    with pytest.raises(DataError, match=r"same value everywhere .*normalization source"):
        measure(images)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number, noise in enumerate(pictures(20, 16, 16, 3) // 2):
            Image.fromarray(noise + np.uint8(90 * label)).save(folder / name / f"{number}.png")
    return folder


def test_a_command_prints_what_a_run_computes(photographs, capsys):
    assert main(["--data-dir", str(photographs), "--image-size", "16", "--seed", "3"]) == 0
    *_, count, mean, std, flag = capsys.readouterr().out.splitlines()
    config = Config(dataset="folder", data_dir=photographs, image_size=16, seed=3)
    expected = measure(load_dataset(config).train.images)
    assert count == "28 training images of 16 pixels a side"
    assert mean == "mean: " + ", ".join(f"{value:.4f}" for value in expected.mean)
    assert std == "std: " + ", ".join(f"{value:.4f}" for value in expected.std)
    option, numbers = flag.split()
    assert option == "--normalization"
    np.testing.assert_allclose(parse_normalization(numbers), expected, rtol=1e-5)


def test_a_command_without_images_ends_with_a_sentence(tmp_path, capsys):
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has 0 sub-folders")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5,0.25", Statistics((0.5,) * 3, (0.25,) * 3)),
        ("0.5,0.1,0.9,0.1,0.5,1", OTHER),
        ("0, 1", Statistics((0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_numbers_are_means_and_then_deviations(text, expected):
    config = Config(normalization=text)
    assert statistics_of(config, LabelledImages(None, None), SOURCE) == expected


@pytest.mark.parametrize(
    "text", ["", "imagenet", "0.5", "0.5,0", "0.5,-1", "nan,1", "1,2,3,4", "0.5,0.5,0.5", "0.5,inf"]
)
def test_other_numbers_are_refused_before_anything_is_read(text):
    with pytest.raises(ConfigError, match=f"normalization='{text}', expected source, dataset, or"):
        resolve(Config(normalization=text))


def test_a_data_set_s_own_statistics_are_published_or_measured(capsys):
    images = LabelledImages(pictures(10, 8, 8, 3), np.zeros(10, np.int32))
    assert statistics_of(Config(), images, SOURCE) == SOURCE
    assert capsys.readouterr().out == ""
    published = statistics_of(Config(dataset="food101", normalization="dataset"), images, SOURCE)
    assert published == Statistics((0.5372, 0.4363, 0.3366), (0.2749, 0.2743, 0.2764))
    assert "normalized by 0.5372,0.4363,0.3366,0.2749,0.2743,0.2764" in capsys.readouterr().out
    measured = statistics_of(Config(dataset="elpv", normalization="dataset"), images, SOURCE)
    assert measured == measure(images.images)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_source_sees_images_under_its_own_statistics(dtype):
    images = jnp.asarray(pictures(5, 8, 8, 3))
    seen = seen_by_source(OTHER, SOURCE)(normalize(images, *OTHER, jnp.dtype(dtype)))
    assert seen.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        seen.astype("float32"), normalize(images, *SOURCE, FLOAT32), rtol=tolerance, atol=tolerance
    )


def test_features_are_lent_from_images_under_the_source_s_statistics(key):
    # A support network equal to the target lends every feature in evaluation mode.
    target = linen_target(Net(), key, jnp.zeros((1, 8, 8, 3)))
    optimizer = optax.sgd(1e-2)
    state = initial_state(*target.split(target.network.params), optimizer)
    variables = {"params": state.params, **state.model_state}
    images = LabelledImages(jnp.asarray(pictures(8, 8, 8, 3)), jnp.arange(8) % 2)
    task = Task(target, *OTHER, FLOAT32, seen_by_source(OTHER, SOURCE))
    step = jax.jit(make_train_step(task, optimizer, Support(Net(), 1.0)))
    _, tally = step(state, key, jnp.arange(8), images, variables)
    key_augment, *_ = jax.random.split(jax.random.fold_in(key, 0), 3)
    seen = normalize(augment(key_augment, images.images), *SOURCE, FLOAT32)
    logits = Net().apply(variables, seen)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, images.labels)
    assert float(tally.loss) == pytest.approx(float(expected.sum()), rel=1e-4)


def test_a_run_is_normalized_as_it_is_told(photographs, tmp_path, capsys):
    weights = small_inputs.save_source(tmp_path / "squeezenet.safetensors")
    config = train.Config(
        **small_inputs.settings_of(photographs, weights),
        epochs=1,
        batch_size=8,
        baseline=False,
        out=tmp_path,
    )
    losses = {}
    for setting in ("source", str(SOURCE), "dataset"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tlv_jax.SimilarityWarning)
            changed = dataclasses.replace(config, normalization=setting)
            result = train.run(changed, console=Console(quiet=True))
        losses[setting] = result.runs[0].epochs[0]["train_loss"]
        assert ("images are normalized by" in capsys.readouterr().out) == (setting != "source")
    assert losses[str(SOURCE)] == losses["source"] != losses["dataset"]
