"""Crossover within a training step: when features are lent, and whose."""

import jax
import jax.numpy as jnp
import numpy as np
from small_network import Net

from train.data import LabelledImages
from train.optimizer import crossover_rate, make_optimizer
from train.recipe import PUBLISHED, Recipe
from train.step import Task, initial_state, make_train_step
from train.support import Support
from train.target import Target

KEY = jax.random.key(0)
LENDER = Net(width=16)
VARIABLES = LENDER.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
IMAGES = LabelledImages(jnp.asarray(PIXELS), jnp.zeros(12, jnp.int32))


def crossed_features(recipe, rate, step):
    """Which features of a step's images are lent, `[B, D]`.

    The target is one whose features are all -1, which no lender's are; its state keeps them.
    """

    def train(params, state, images, key, change):
        features = change(-jnp.ones((len(images), 16)))
        return features[:, :2] * params, features

    target = Target(None, None, train, None)
    task = Task(target, (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
    optimizer = make_optimizer(1e-2, 0.0, 10)
    state = initial_state(jnp.ones(()), jnp.zeros((12, 16)), optimizer)
    state = state.replace(step=jnp.int32(step))
    run = jax.jit(make_train_step(task, optimizer, Support(LENDER, rate), recipe))
    after, _ = run(state, KEY, jnp.arange(12), IMAGES, VARIABLES)
    return np.asarray(after.model_state) != -1


def test_features_are_drawn_for_each_image():
    lent = crossed_features(PUBLISHED, 0.5, step=0)
    assert len({row.tobytes() for row in lent}) == 12
    assert 0.35 < lent.mean() < 0.65  # standard error 0.04


def test_features_are_drawn_once_for_a_batch_and_anew_in_the_next_step():
    recipe = Recipe(crossover_mask="batch")
    first, second = (crossed_features(recipe, 0.5, step) for step in (0, 1))
    for lent in (first, second):
        assert (lent == lent[0]).all()
        assert 0 < lent[0].sum() < 16
    assert (first != second).any()


def test_a_linear_schedule_lends_less_and_less():
    rate = crossover_rate(1.0, 10, Recipe(crossover_schedule="linear"))
    shares = [crossed_features(PUBLISHED, rate, step).mean() for step in (0, 5, 10)]
    assert shares[0] == 1
    assert 0.35 < shares[1] < 0.65
    assert shares[2] == 0
