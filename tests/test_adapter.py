"""Features that are lent to a target of another width: projected, or by a layer that learns."""

import io
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_inputs
from rich.console import Console
from small_network import Net

import importers
from train.__main__ import main
from train.adapter import Widths, draw_adapter, fit_projection, matched, widths_to_adapt
from train.data import LabelledImages
from train.linen_target import linen_target
from train.optimizer import make_optimizer
from train.probe import Linear
from train.recipe import Recipe, without_patterns
from train.step import Task, initial_state, make_train_step, with_adapter
from train.support import Adapter, Lent, Support
from train.target import Target

GENERATOR = np.random.default_rng(0)
WIDTH = 6
LENDER = Net(width=5)
VARIABLES = LENDER.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
PIXELS = GENERATOR.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
IMAGES = LabelledImages(jnp.asarray(PIXELS), jnp.arange(12) % 2)
LENT = LENDER.apply(VARIABLES, PIXELS / np.float32(255) * 2 - 1, method="features")
OWN = np.asarray(PIXELS / np.float32(255) * 2 - 1).reshape(12, -1)[:, :WIDTH]
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "crop": "none", "flip": 0.0}


def linear_target(*, keeps):
    """Its features are the first pixels, and its head is all it trains. May keep the features."""

    def train(params, state, images, key, change):
        features = change(images.reshape(len(images), -1)[:, :WIDTH])
        return features @ params, features if keeps else state

    return Target(None, None, train, None)


def one_step(recipe, rate, lent, adapter=None):
    """The states before and after a step on all images."""
    target = linear_target(keeps=recipe.accumulate == 1)
    task = Task(target, (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
    optimizer = make_optimizer(1.0, 0.0, 10, recipe)
    own = make_optimizer(1.0, 0.0, 10, without_patterns(recipe))
    head = jnp.asarray(np.random.default_rng(1).normal(size=(WIDTH, 2)), jnp.float32)
    state = initial_state(head, jnp.zeros((12, WIDTH)), optimizer, recipe)
    if adapter is not None:
        state = with_adapter(state, Adapter(adapter), own)
    step = jax.jit(make_train_step(task, optimizer, Support(LENDER, rate, None, own), recipe))
    after, _ = step(state, jax.random.key(0), jnp.arange(12), IMAGES, lent)
    return state, after


def test_a_projection_keeps_as_much_variance_as_any_map_can():
    features = GENERATOR.normal(size=(50, 4)) @ GENERATOR.normal(size=(4, 7)) + 5
    features = features.astype(np.float32)
    components = np.asarray(fit_projection(features, 3).logits(features))
    np.testing.assert_allclose(components.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(components.T, bias=True), np.eye(3), atol=1e-3)
    centred = features - features.mean(0)
    left = centred - components @ np.linalg.lstsq(components, centred, rcond=None)[0]
    expected = np.linalg.svd(centred, compute_uv=False)[3:]
    assert np.sum(left**2) == pytest.approx(np.sum(expected**2), rel=1e-3)


def test_a_projection_has_no_more_components_than_the_features():
    features = np.repeat(GENERATOR.normal(size=(50, 2)), 3, axis=1).astype(np.float32)
    assert fit_projection(features, 5).weights.shape == (6, 2)


def test_components_get_the_mean_and_deviation_of_the_features():
    components = GENERATOR.normal(size=(12, 4)).astype(np.float32)
    found = matched(components, jnp.asarray(OWN))
    expected = components * OWN[:, :4].std(0) + OWN[:, :4].mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["example", "batch"])
def test_a_projection_is_lent_in_place_of_the_features(mask):
    linear = Linear(jnp.asarray(GENERATOR.normal(size=(5, 4)), jnp.float32), jnp.ones(4))
    lent = Lent(VARIABLES, projection=linear)
    _, after = one_step(Recipe(crossover_mask=mask, **PLAIN), 0.5, lent)
    given = np.asarray(matched(linear.logits(LENT), jnp.asarray(OWN)))
    found = np.asarray(after.model_state)
    replaced = np.abs(found - OWN)[:, :4] > 1e-5
    np.testing.assert_allclose(found[:, :4][replaced], given[replaced], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 4:], OWN[:, 4:], atol=1e-5)
    assert 0 < replaced.sum() < replaced.size
    assert (replaced == replaced[0]).all() == (mask == "batch")


def test_a_layer_learns_what_to_lend_and_is_not_evaluated():
    adapter = draw_adapter(jax.random.key(2), Widths(5, WIDTH))
    # Its rate is another parameter's: patterns are for the target.
    recipe = Recipe(ema=0.9, rates=(("weights", 0.1),), **PLAIN)
    before, after = one_step(recipe, 1.0, VARIABLES, adapter)

    def loss(adapter):
        logits = adapter.logits(LENT) @ before.params
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), IMAGES.labels])

    expected = jax.tree.map(jnp.subtract, adapter, jax.grad(loss)(adapter))
    chex.assert_trees_all_close(after.adapter.crossover, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.model_state, adapter.logits(LENT), rtol=1e-4, atol=1e-5)
    assert after.tested_params.shape == (WIDTH, 2)


def test_a_batch_in_parts_trains_the_layer_as_a_whole_one():
    adapter = draw_adapter(jax.random.key(2), Widths(5, WIDTH))
    _, whole = one_step(Recipe(**PLAIN), 1.0, VARIABLES, adapter)
    _, parts = one_step(Recipe(accumulate=2, **PLAIN), 1.0, VARIABLES, adapter)
    chex.assert_trees_all_close(parts.adapter, whole.adapter, rtol=1e-4, atol=1e-5)


def test_equal_widths_need_no_adapter():
    output = io.StringIO()
    target = linen_target(Net(), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    source = importers.Pretrained(LENDER, **VARIABLES, preprocess=None, categories=())
    recipe, images = Recipe(crossover_adapter="learned"), jnp.zeros((1, 8, 8, 3))
    console = Console(file=output, width=200)
    assert widths_to_adapt(recipe, source, target, images, console) == (5, 8)
    assert "crossover adapter: learned, of 5 features to 8" in output.getvalue()
    same = linen_target(LENDER, jax.random.key(0), images)
    assert widths_to_adapt(recipe, source, same, images, console) is None
    assert "none, as source and target have 5 features each" in output.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")
@pytest.mark.parametrize("adapter", ["projection", "learned"])
def test_a_run_adapts_what_it_lends_and_goes_on_with_it(tmp_path, capsys, adapter):
    small_inputs.save_photographs(tmp_path / "pictures")
    small_inputs.save_source(tmp_path / "source.safetensors")
    arguments = [
        *("--source", "squeezenet1_1", "--source-weights", str(tmp_path / "source.safetensors")),
        *("--target", "small_network:Net", "--dataset", "folder", "--crossover-rate", "0.5"),
        *("--data-dir", str(tmp_path / "pictures"), "--image-size", "32", "--batch-size", "8"),
        *("--out", str(tmp_path / "runs"), "--name", "run", "--epochs", "1"),
        *("--recipe.crossover-adapter", adapter),
    ]
    assert main(arguments) == 0
    assert f"crossover adapter: {adapter}, of 512 features to 8" in capsys.readouterr().out
    results = json.loads((tmp_path / "runs" / "run" / "results.json").read_text())
    assert [result["name"] for result in results] == ["transferred", "he"]
    saved = {
        name: ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree
        for name in ("transferred", "he")
        for path in (tmp_path / "runs" / "run" / "checkpoints" / name).glob("*/state")
    }
    assert ("adapter" in saved["transferred"]) == (adapter == "learned")
    assert "adapter" not in saved["he"]
    assert main([*arguments, "--resume"]) == 0
