import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_network import Net

from train.augment import normalize
from train.data import LabelledImages
from train.linen_target import linen_target
from train.mixing import Mixture, cutmix, mix, mixup
from train.optimizer import make_optimizer
from train.recipe import Recipe
from train.step import Task, cross_entropy, initial_state, make_train_step
from train.support import Support

IMAGES = np.random.default_rng(0).standard_normal((5, 8, 12, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0])


def others(array):
    """Each element's partner: the one before it, of the first the last."""
    return array[[len(array) - 1, *range(len(array) - 1)]]


def cut_by_loops(images, share, center):
    """As in the paper, and in torchvision: a box that is cut off at the border."""
    height, width = images.shape[1:3]
    mixed, stayed = images.copy(), height * width
    top, left = int(center[0] * height), int(center[1] * width)
    half_height = int(0.5 * np.sqrt(1 - share) * height)
    half_width = int(0.5 * np.sqrt(1 - share) * width)
    for row in range(max(top - half_height, 0), min(top + half_height, height)):
        for column in range(max(left - half_width, 0), min(left + half_width, width)):
            mixed[:, row, column] = others(images)[:, row, column]
            stayed -= 1
    return mixed, stayed / (height * width)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_that_of_a_formula(share):
    mixed, kept = mixup(jnp.asarray(IMAGES), jnp.float32(share))
    expected = share * IMAGES + (1 - share) * others(IMAGES)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    assert float(kept) == pytest.approx(share)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("center", [(0.5, 0.5), (0.05, 0.9), (0.99, 0.0)])
def test_cutmix_is_that_of_a_loop(share, center):
    mixed, kept = cutmix(jnp.asarray(IMAGES), jnp.float32(share), jnp.array(center))
    expected, stayed = cut_by_loops(IMAGES, share, center)
    np.testing.assert_array_equal(mixed, expected)
    assert float(kept) == pytest.approx(stayed)


def test_the_loss_of_a_mixture_is_that_of_its_labels():
    logits = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    targets = 0.3 * np.eye(3)[LABELS] + 0.7 * np.eye(3)[others(LABELS)]
    mixture = Mixture(jnp.asarray(others(LABELS)), jnp.float32(0.3))
    for smoothing in (0.0, 0.1):
        losses = cross_entropy(jnp.asarray(logits), jnp.asarray(LABELS), smoothing, mixture)
        theirs = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits),
            torch.from_numpy(targets.astype(np.float32)),
            reduction="none",
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(losses, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "recipe", [Recipe(mixup=0.4), Recipe(cutmix=1.0), Recipe(mixup=0.4, cutmix=1.0)]
)
def test_shares_are_beta_distributed_and_belong_to_the_images(recipe):
    """Of images of one colour each, black before white, so that their means tell the share."""
    images = jnp.concatenate([jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 16, 16, 3))])
    draw = jax.jit(jax.vmap(lambda key: mix(key, images, jnp.array([0, 1]), recipe)))
    mixed, mixture = draw(jax.random.split(jax.random.key(0), 500))
    assert (mixture.labels == jnp.array([[1, 0]])).all()
    np.testing.assert_allclose(mixed[:, 1].mean((1, 2, 3)), mixture.share, atol=1e-5)
    np.testing.assert_allclose(mixed[:, 0].mean((1, 2, 3)), 1 - mixture.share, atol=1e-5)
    blended = ((mixed > 1e-3) & (mixed < 1 - 1e-3)).any((1, 2, 3, 4))
    expected = {
        (True, False): 0.93,
        (False, True): 0.0,
        (True, True): 0.465,
    }  # some shares are 0 or 1
    ways = recipe.mixup > 0, recipe.cutmix > 0
    assert float(blended.mean()) == pytest.approx(expected[ways], abs=0.07)
    if ways == (True, False):
        assert float(mixture.share.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(mixture.share.var()) == pytest.approx(1 / (4 * 1.8), abs=0.02)


@pytest.mark.parametrize("recipe", [Recipe(mixup=0.4), Recipe(cutmix=1.0)])
def test_both_networks_see_the_mixed_images(recipe):
    """A lender that is equal to the target lends what the target has: nothing but its statistics
    differ, so the loss is that of the lender on the mixed images."""
    key = jax.random.key(3)
    task = Task(
        linen_target(Net(), key, jnp.zeros((1, 8, 8, 3))),
        (0.5,) * 3,
        (0.5,) * 3,
        jnp.dtype("float32"),
    )
    optimizer = make_optimizer(1e-2, 5e-4, 10)
    state = initial_state(*task.target.split(task.target.network.params), optimizer)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    labels = jnp.arange(8, dtype=jnp.int32) % 2
    plain = dict(crop="none", flip=0.0)
    recipe = Recipe(**plain, mixup=recipe.mixup, cutmix=recipe.cutmix)
    step = jax.jit(make_train_step(task, optimizer, Support(Net(), 1.0), recipe))
    variables = {"params": state.params, **state.model_state}
    data = LabelledImages(jnp.asarray(pixels), labels)
    _, tally = step(state, key, jnp.arange(8), data, variables)
    key_images = jax.random.split(jax.random.fold_in(key, 0), 3)[0]
    images = normalize(jnp.asarray(pixels), task.mean, task.std, task.dtype)
    mixed, _ = mix(jax.random.split(key_images)[1], images, labels, recipe)
    expected = cross_entropy(Net().apply(variables, mixed), labels).sum()
    assert float(tally.loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(tally.loss) != pytest.approx(
        float(cross_entropy(Net().apply(variables, images), labels).sum()), rel=1e-3
    )


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_two_devices_give_what_one_gives(dtype):
    """With cropped and mixed images, in parts of the batch, for which features are lent."""
    key = jax.random.key(3)
    target = linen_target(Net(), key, jnp.zeros((1, 8, 8, 3)))
    task = Task(target, (0.5,) * 3, (0.5,) * 3, jnp.dtype(dtype))
    recipe = Recipe(optimizer="sgd", crop="resized", mixup=0.4, cutmix=1.0, accumulate=2, ema=0.5)
    optimizer = make_optimizer(1e-2, 5e-4, 10, recipe)
    params, model_state = target.split(target.network.params)
    state = initial_state(params, model_state, optimizer, recipe)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    data = LabelledImages(jnp.asarray(pixels), jnp.arange(16, dtype=jnp.int32) % 2)
    variables = {"params": params, **model_state}
    step = jax.jit(make_train_step(task, optimizer, Support(Net(), 0.3), recipe))
    rows = jnp.arange(16, dtype=jnp.int32)
    alone, _ = step(state, key, rows, data, variables)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec()))
    split = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
    both, _ = step(put(state), put(key), split, put(data), put(variables))
    tolerance = 1e-5 if dtype == "float32" else 1e-3
    chex.assert_trees_all_equal_dtypes(alone, state)
    chex.assert_trees_all_close(both, alone, rtol=tolerance, atol=tolerance)
