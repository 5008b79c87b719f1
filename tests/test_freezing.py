"""Parameters that are frozen, or have a learning rate of their own, by the patterns of a recipe."""

import dataclasses

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import Net
from test_target import OfNNX

from train import checkpoints
from train.config import Config, RecipeOptions
from train.data import LabelledImages
from train.errors import ConfigError
from train.linen_target import linen_target
from train.nnx_target import nnx_target
from train.optimizer import check_patterns, make_optimizer
from train.recipe import MODERN, Recipe, recipe_of
from train.resolve import resolve
from train.step import Task, initial_state, make_train_step

KEY = jax.random.key(0)
PICTURES = jnp.zeros((1, 8, 8, 3))
PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 3, 4)), "bias": jnp.ones(4)},
    "classifier.1": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}
GRADIENTS = jax.tree.map(
    lambda leaf: 0.1 * jnp.arange(1.0, leaf.size + 1).reshape(leaf.shape), PARAMS
)


def stepped(recipe, params=PARAMS, steps=2):
    optimizer = make_optimizer(1e-2, 5e-2, 10, recipe)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_frozen_parameters_stay_and_the_others_are_trained_as_if_alone(optimizer, decay_all):
    choices = {"optimizer": optimizer, "decay_all": decay_all}
    params, _ = stepped(Recipe(**choices, freeze=("^conv/",)))
    chex.assert_trees_all_equal(params["conv"], PARAMS["conv"])
    expected, _ = stepped(Recipe(**choices))
    chex.assert_trees_all_close(params["classifier.1"], expected["classifier.1"], rtol=1e-6)


def test_gradients_of_frozen_parameters_are_not_in_the_norm_that_is_clipped():
    alone = {"classifier.1": PARAMS["classifier.1"]}
    clipped = Recipe(optimizer="sgd", clip_norm=0.1)
    optimizer = make_optimizer(1e-2, 5e-2, 10, clipped)
    gradients = {"classifier.1": GRADIENTS["classifier.1"]}
    updates, _ = optimizer.update(gradients, optimizer.init(alone), alone)
    frozen = Recipe(optimizer="sgd", clip_norm=0.1, freeze=("conv",))
    params, _ = stepped(frozen, steps=1)
    expected = optax.apply_updates(alone, updates)["classifier.1"]
    chex.assert_trees_all_close(params["classifier.1"], expected, rtol=1e-6)


def test_no_state_is_kept_of_frozen_parameters():
    _, state = stepped(Recipe(freeze=("conv",)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(shapes) == [(2,), (2,), (4, 2), (4, 2)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_factor_is_another_learning_rate(optimizer):
    rates = (("kernel", 3.0), ("classifier", 10.0))
    params, _ = stepped(Recipe(optimizer=optimizer, rates=rates))
    for part, name, rate in [
        ("conv", "bias", 1e-2),
        ("conv", "kernel", 3e-2),
        ("classifier.1", "kernel", 1e-1),  # the last pattern that matches
        ("classifier.1", "bias", 1e-1),
    ]:
        alone = make_optimizer(rate, 5e-2, 10, Recipe(optimizer=optimizer))
        expected, state = PARAMS[part][name], alone.init(PARAMS[part][name])
        for _ in range(2):
            updates, state = alone.update(GRADIENTS[part][name], state, expected)
            expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params[part][name], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "recipe", [Recipe(freeze=("conv", "dens/")), Recipe(rates=(("dens/", 10.0),))]
)
def test_a_pattern_that_is_found_nowhere_is_refused_with_some_of_the_paths(recipe):
    with pytest.raises(ConfigError, match=r"'dens/' is found .* of classifier\.1/bias, .*conv/ker"):
        check_patterns(recipe, PARAMS)


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigError, match="leaves nothing to train: all 4 parameters"):
        check_patterns(Recipe(freeze=("kernel", "bias")), PARAMS)


def test_another_rate_of_what_is_frozen_is_refused():
    recipe = Recipe(freeze=("^conv/",), rates=(("conv", 2.0), ("classifier", 2.0)))
    with pytest.raises(ConfigError, match=r"conv=2 does nothing, as recipe\.freeze=\['\^conv/'\]"):
        check_patterns(recipe, PARAMS)


def test_patterns_that_are_found_are_taken_and_what_they_freeze_is_named():
    recipe = Recipe(freeze=(r"^conv/.*",), rates=(("classifier", 10.0),))
    assert check_patterns(recipe, PARAMS) == ["conv/bias", "conv/kernel"]
    assert check_patterns(Recipe(), PARAMS) == []


def chosen(**options):
    return recipe_of(resolve(Config(recipe=RecipeOptions(**options))))


def test_factors_are_read():
    assert chosen(rates=("classifier=10", "a=b=0.5")).rates == (("classifier", 10.0), ("a=b", 0.5))


@pytest.mark.parametrize("text", ["classifier", "=10", "classifier=", "conv=-1", "conv=nan", "c=0"])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(ConfigError, match="expected PATTERN=FACTOR"):
        chosen(rates=(text,))


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ConfigError, match=r"'conv\(' is no regular expression"):
        chosen(freeze=("conv(",))


TARGETS = {
    "linen": lambda: linen_target(Net(), KEY, PICTURES),
    "nnx": lambda: nnx_target(OfNNX(nnx.Rngs(0), num_classes=2), PICTURES),
}


@pytest.mark.parametrize("library", TARGETS)
def test_a_network_with_frozen_layers_is_trained_saved_and_resumed(library, tmp_path):
    """With everything else that the modern recipe has."""
    task = Task(TARGETS[library](), (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
    recipe = dataclasses.replace(MODERN, freeze=("^conv/",), accumulate=2)
    params, model_state = task.target.split(task.target.network.params)
    check_patterns(recipe, params)
    optimizer = make_optimizer(1e-2, 5e-4, 4, recipe, warmup=1)
    start = initial_state(params, model_state, optimizer, recipe)
    step = jax.jit(make_train_step(task, optimizer, None, recipe))
    generator = np.random.default_rng(0)
    pixels = jnp.asarray(generator.integers(0, 256, (16, 8, 8, 3)), jnp.uint8)
    images = LabelledImages(pixels, jnp.arange(16, dtype=jnp.int32) % 2)

    def on(state, steps):
        for _ in range(steps):
            state, _ = step(state, KEY, jnp.arange(16, dtype=jnp.int32), images, None)
        return state

    half = on(start, 2)
    whole = on(half, 2)
    with checkpoints.open_checkpoints(tmp_path, "accuracy") as manager:
        checkpoints.save(manager, half, {}, {"accuracy": 0.5})
        restored = checkpoints.restore(manager, start)
    chex.assert_trees_all_equal(on(restored[0], 2), whole)
    for trained in (whole.params, whole.average):
        frozen = [
            np.array_equal(old, new)
            for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(trained), strict=True)
        ]
        assert frozen == [True, True] + [False] * (len(frozen) - 2)
