import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_network import Net

from tlv_jax import models
from train.augment import augment, normalize
from train.data import LabelledImages
from train.linen_target import linen_target
from train.optimizer import learning_rate, make_optimizer
from train.recipe import PUBLISHED, Recipe
from train.step import (
    Support,
    Task,
    cross_entropy,
    initial_state,
    make_eval_step,
    make_train_step,
)

PICTURES = jnp.zeros((1, 8, 8, 3))


def target_of(model):
    return linen_target(model, jax.random.key(0), PICTURES)


TASK = Task(target_of(Net()), (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
STEPS = 40


@pytest.fixture(scope="module")
def images():
    """Bright images of class 1, dark ones of class 0."""
    generator = np.random.default_rng(0)
    labels = np.arange(32, dtype=np.int32) % 2
    base = generator.integers(0, 128, (32, 8, 8, 3)) + 120 * labels[:, None, None, None]
    return LabelledImages(jnp.asarray(base, jnp.uint8), jnp.asarray(labels))


@pytest.fixture(scope="module")
def start():
    optimizer = make_optimizer(1e-2, 5e-4, STEPS)
    state = initial_state(*TASK.target.split(TASK.target.network.params), optimizer)
    return state, optimizer


@pytest.fixture(scope="module")
def lender():
    model = Net(width=5)
    return model, model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))


def rows(step):
    return jnp.arange(16, dtype=jnp.int32) + 16 * (step % 2)


def seen_images(key, images):
    """What the first step sees of the first batch."""
    key_augment, *_ = jax.random.split(jax.random.fold_in(key, 0), 3)
    augmented = augment(key_augment, images.images[rows(0)])
    return normalize(augmented, TASK.mean, TASK.std, TASK.dtype)


def test_training_learns_a_learnable_task(key, images, start):
    state, optimizer = start
    step = jax.jit(make_train_step(TASK, optimizer, None))
    tallies = []
    for number in range(STEPS):
        state, tally = step(state, key, rows(number), images, None)
        tallies.append(float(tally.loss) / 16)
    assert int(state.step) == STEPS
    assert np.mean(tallies[-4:]) < 0.6 * np.mean(tallies[:4])
    everything = jnp.arange(32, dtype=jnp.int32)
    tested = make_eval_step(TASK)(
        state.params, state.model_state, everything, jnp.ones(32, bool), images
    )
    assert tested.correct.sum() > 28


@pytest.mark.parametrize("wrap", [chex.assert_max_traces(n=1)], ids=["one trace"])
def test_every_step_runs_the_same_program(key, images, start, wrap):
    state, optimizer = start
    step = jax.jit(wrap(make_train_step(TASK, optimizer, None)))
    for number in range(3):
        state, _ = step(state, key, rows(number), images, None)


def test_the_same_key_and_state_give_the_same_step(key, images, start, lender):
    state, optimizer = start
    step = jax.jit(make_train_step(TASK, optimizer, Support(lender[0], 0.5)))
    first, again, other = (
        step(state, k, rows(0), images, lender[1])[0].params for k in (key, key, jax.random.key(7))
    )
    chex.assert_trees_all_equal(first, again)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(first, other)


def test_later_steps_draw_anew(key, images, start):
    state, optimizer = start
    step = jax.jit(make_train_step(TASK, optimizer, None))
    first, _ = step(state, key, rows(0), images, None)
    second, _ = step(state.replace(step=state.step + 1), key, rows(0), images, None)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(first.params, second.params)


def test_crossover_changes_training_and_not_evaluation(key, images, start, lender):
    state, optimizer = start
    plain = jax.jit(make_train_step(TASK, optimizer, None))
    crossed = jax.jit(make_train_step(TASK, optimizer, Support(lender[0], 1.0)))
    without, _ = plain(state, key, rows(0), images, None)
    with_, _ = crossed(state, key, rows(0), images, lender[1])
    gradient = lambda after: after.params["conv"]["kernel"] - state.params["conv"]["kernel"]  # noqa: E731
    # Every one of the first five features is lent, so those filters get decay and no gradient.
    assert np.abs(gradient(with_)[..., :5]).max() < 1e-4 < np.abs(gradient(without)[..., :5]).max()
    assert np.abs(gradient(with_)[..., 5:]).max() > 1e-3


def test_the_support_network_sees_the_target_s_own_images(key, images, start):
    state, optimizer = start
    # A support network equal to the target lends in evaluation mode what the target has.
    variables = {"params": state.params, **state.model_state}
    step = jax.jit(make_train_step(TASK, optimizer, Support(Net(), 1.0)))
    _, tally = step(state, key, rows(0), images, variables)
    logits = Net().apply(variables, seen_images(key, images))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, images.labels[rows(0)])
    assert float(tally.loss) == pytest.approx(float(expected.sum()), rel=1e-5)


def test_half_precision_computes_and_full_precision_keeps(key, images, start, lender):
    state, optimizer = start
    task = TASK._replace(dtype=jnp.dtype("bfloat16"))
    step = jax.jit(make_train_step(task, optimizer, Support(lender[0], 0.5)))
    after, tally = step(state, key, rows(0), images, lender[1])
    chex.assert_trees_all_equal_dtypes(after, state)
    full = jax.jit(make_train_step(TASK, optimizer, Support(lender[0], 0.5)))
    _, expected = full(state, key, rows(0), images, lender[1])
    assert float(tally.loss) != float(expected.loss)
    assert float(tally.loss) == pytest.approx(float(expected.loss), rel=0.02)


def test_crossover_at_rate_0_is_the_plain_step(key, images, start, lender):
    task = TASK._replace(target=target_of(Net(dropout=0.5)))
    state, optimizer = start
    plain = jax.jit(make_train_step(task, optimizer, None))
    crossed = jax.jit(make_train_step(task, optimizer, Support(lender[0], 0.0)))
    expected, _ = plain(state, key, rows(0), images, None)
    after, _ = crossed(state, key, rows(0), images, lender[1])
    chex.assert_trees_all_close(after.opt_state[0].mu, expected.opt_state[0].mu, atol=1e-7)
    chex.assert_trees_all_close(after.model_state, expected.model_state, atol=1e-7)


class Unusual(Net):
    """Its logits are not those of its head alone (SqueezeNet), and not alone (GoogLeNet)."""

    def __call__(self, images, *, train=False):
        logits = 3 * super().__call__(images, train=train)
        return models.InceptionV3Outputs(logits, logits - 5) if train else logits


def test_without_crossover_the_network_is_trained_as_it_is_evaluated(key, images, start):
    state, optimizer = start
    model = Unusual()
    step = jax.jit(make_train_step(TASK._replace(target=target_of(model)), optimizer, None))
    _, tally = step(state, key, rows(0), images, None)
    variables = {"params": state.params, **state.model_state}
    (logits, _), _ = model.apply(
        variables, seen_images(key, images), train=True, mutable=["batch_stats"]
    )
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, images.labels[rows(0)])
    assert float(tally.loss) == pytest.approx(float(expected.sum()), rel=1e-5)


def test_with_crossover_it_is_trained_by_features_and_head(key, images, start, lender):
    state, optimizer = start
    losses = []
    for model in (Net(), Unusual()):
        step = make_train_step(
            TASK._replace(target=target_of(model)), optimizer, Support(lender[0], 0.5)
        )
        losses.append(float(jax.jit(step)(state, key, rows(0), images, lender[1])[1].loss))
    assert losses[0] == losses[1]


def test_batch_statistics_are_updated(key, images, start):
    state, optimizer = start
    after, _ = jax.jit(make_train_step(TASK, optimizer, None))(state, key, rows(0), images, None)
    assert np.abs(after.model_state["batch_stats"]["norm"]["mean"]).max() > 0


def test_the_state_can_be_donated(key, images, start):
    state, optimizer = start
    state = jax.tree.map(jnp.copy, state)
    step = jax.jit(make_train_step(TASK, optimizer, None), donate_argnums=0)
    after, _ = step(state, key, rows(0), images, None)
    assert state.params["conv"]["kernel"].is_deleted()
    chex.assert_tree_all_finite(after.params)


def test_two_devices_give_what_one_gives(key, images, start, lender):
    state, optimizer = start
    step = jax.jit(make_train_step(TASK, optimizer, Support(lender[0], 0.3)))
    alone, tally = step(state, key, rows(0), images, lender[1])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    put = functools.partial(jax.device_put, device=replicated)
    split = jax.device_put(rows(0), NamedSharding(mesh, PartitionSpec("data")))
    both, both_tally = step(put(state), put(key), split, put(images), put(lender[1]))
    np.testing.assert_allclose(both_tally.loss, tally.loss, rtol=1e-5)
    chex.assert_trees_all_close(both.model_state, alone.model_state, rtol=1e-5, atol=1e-6)
    # Adam's first moments are the gradients; the parameters move by their signs alone.
    chex.assert_trees_all_close(both.opt_state[0].mu, alone.opt_state[0].mu, rtol=1e-4, atol=1e-6)


def test_the_published_recipe_is_the_published_step(key, images, start):
    """Written out once more, with Optax's own AdamW: equal bit for bit."""
    state, optimizer = start

    def published(state, opt_state, step):
        keys = jax.random.split(jax.random.fold_in(key, step), 3)
        seen = augment(keys[0], images.images[rows(step)])
        seen = normalize(seen, TASK.mean, TASK.std, TASK.dtype)

        def loss(params):
            logits, updated = TASK.target.train(params, state.model_state, seen, keys[1], None)
            labels = images.labels[rows(step)]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(state.params)
        changes, opt_state = adamw.update(gradients, opt_state, state.params)
        return state.replace(
            params=optax.apply_updates(state.params, changes), model_state=updated
        ), opt_state

    adamw = optax.adamw(learning_rate(1e-2, STEPS), weight_decay=5e-4)
    expected, opt_state = state, adamw.init(state.params)
    step = jax.jit(make_train_step(TASK, optimizer, None, PUBLISHED))
    published = jax.jit(published, static_argnums=2)
    for number in range(3):
        expected, opt_state = published(expected, opt_state, number)
        state, _ = step(state, key, rows(number), images, None)
    chex.assert_trees_all_equal(state.params, expected.params)
    chex.assert_trees_all_equal(state.model_state, expected.model_state)


def test_label_smoothing_is_torch_s_and_that_of_a_formula():
    logits = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 1, 1])
    targets = np.eye(4)[labels] * 0.9 + 0.1 / 4
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
    np.testing.assert_allclose(losses, -(targets * log_probabilities).sum(1), rtol=1e-5)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), reduction="none", label_smoothing=0.1
    )
    np.testing.assert_allclose(losses, theirs, rtol=1e-5)


def test_label_smoothing_changes_training_and_not_the_loss_that_is_reported(key, images, start):
    state, optimizer = start
    first, smoothed = (
        jax.jit(make_train_step(TASK, optimizer, None, recipe))(state, key, rows(0), images, None)
        for recipe in (PUBLISHED, Recipe(label_smoothing=0.3))
    )
    assert float(smoothed[1].loss) == float(first[1].loss)
    # Adam's first moments are the gradients.
    moments = [np.asarray(each[0].opt_state[0].mu["dense"]["kernel"]) for each in (first, smoothed)]
    assert np.abs(moments[0] - moments[1]).max() > 1e-4


def test_parts_of_a_batch_give_its_gradients_and_their_own_statistics(key, start):
    """Of black images, which no augmentation changes. Each part has images of one class alone."""
    state, optimizer = start
    labels = jnp.arange(32, dtype=jnp.int32) % 2
    black = LabelledImages(jnp.zeros((32, 8, 8, 3), jnp.uint8), labels)
    (whole, tally), (parts, tally_of_parts) = (
        jax.jit(make_train_step(TASK, optimizer, None, recipe))(state, key, rows(0), black, None)
        for recipe in (PUBLISHED, Recipe(accumulate=2))
    )
    chex.assert_trees_all_close(parts.opt_state[0].mu, whole.opt_state[0].mu, rtol=1e-4, atol=1e-7)
    assert np.abs(whole.opt_state[0].mu["dense"]["kernel"]).max() > 1e-4
    chex.assert_trees_all_close(tally_of_parts, tally, rtol=1e-5)
    norms = [each.model_state["batch_stats"]["norm"]["mean"] for each in (whole, parts)]
    momentum = 0.9
    np.testing.assert_allclose(norms[1], norms[0] * (1 + momentum), rtol=1e-5)


def test_every_image_of_a_batch_is_in_one_part(key, images, start):
    state, optimizer = start
    own_class = LabelledImages(images.images, images.labels.at[5].set(0))
    step = jax.jit(make_train_step(TASK, optimizer, None, Recipe(accumulate=4)))
    _, tally = step(state, key, rows(0), own_class, None)
    np.testing.assert_array_equal(tally.examples, [9, 7])


def test_the_average_of_the_weights_is_that_of_a_loop(key, images, start):
    state, optimizer = start
    recipe = Recipe(ema=0.25)
    state = initial_state(state.params, state.model_state, optimizer, recipe)
    step = jax.jit(make_train_step(TASK, optimizer, None, recipe))
    expected = np.asarray(state.params["conv"]["kernel"])
    for number, decay in enumerate((1 / 10, 2 / 11, 0.25, 0.25)):
        state, _ = step(state, key, rows(number), images, None)
        expected = decay * expected + (1 - decay) * np.asarray(state.params["conv"]["kernel"])
        np.testing.assert_allclose(state.average["conv"]["kernel"], expected, rtol=1e-5, atol=1e-7)
    assert state.tested_params is state.average
    assert start[0].tested_params is start[0].params
