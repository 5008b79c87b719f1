"""Images in memory that are divided over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import Net

from train.config import Config
from train.data import LabelledImages
from train.devices import find_devices, place, place_images
from train.linen_target import linen_target
from train.step import Task, initial_state, make_eval_step, make_train_step
from train.support import Support

BATCH, SIDE = 16, 8


@pytest.fixture(scope="module")
def devices():
    found = find_devices(Config(batch_size=BATCH))
    assert found.rows.num_devices == 2
    return found


def random_images(count):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    return LabelledImages(pixels, generator.integers(0, 2, count).astype(np.int32))


@pytest.mark.parametrize("count", [8, 7, 1])
def test_each_device_holds_its_share_of_the_images(devices, count):
    images = random_images(count)
    placed = place_images(images, devices)
    share = (count + 1) // 2
    shapes = [shard.data.shape for shard in placed.images.addressable_shards]
    assert shapes == [(share, SIDE, SIDE, 3)] * 2
    assert len(placed) == count
    np.testing.assert_array_equal(placed.images[:count], images.images)
    np.testing.assert_array_equal(placed.labels, images.labels)


@pytest.fixture(scope="module")
def task():
    target = linen_target(Net(), jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    return Task(target, (0.5,) * 3, (0.25,) * 3, jnp.dtype("float32"))


@pytest.fixture(scope="module")
def lender():
    model = Net(width=5)
    return model, model.init(jax.random.key(1), jnp.zeros((1, SIDE, SIDE, 3)))


@pytest.fixture(scope="module")
def programs(task, lender):
    """A training step and an evaluation step, and the state before the first."""
    optimizer = optax.sgd(1e-2)  # Adam's first steps go by the signs of gradients
    state = initial_state(*task.target.split(task.target.network.params), optimizer)
    step = make_train_step(task, optimizer, Support(lender[0], 0.3))
    return jax.jit(step), jax.jit(make_eval_step(task)), state


def test_two_devices_with_half_the_images_each_give_what_one_gives(key, devices, programs, lender):
    step, evaluate, state = programs
    images = random_images(101)
    batches = np.random.default_rng(1).permutation(101)[: 5 * BATCH].reshape(5, BATCH)
    losses = {}
    for name in ("one", "two"):
        now, data, lent = state, jax.tree.map(jnp.asarray, images), lender[1]
        if name == "two":
            now, lent = place((state, lent), devices.replicated)
            data = place_images(images, devices)
        losses[name] = []
        for rows in batches.astype(np.int32):
            rows = place(rows, devices.rows) if name == "two" else rows
            now, tally = step(now, key, rows, data, lent)
            losses[name].append(float(tally.loss))
        last = np.arange(101 - BATCH, 101, dtype=np.int32)
        if name == "two":
            last = place(last, devices.rows)
        tested = evaluate(now.params, now.model_state, last, np.ones(BATCH, bool), data)
        losses[name].append(float(tested.loss))
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)


def test_a_step_divides_the_work_and_gathers_no_more_than_a_batch(key, devices, programs, lender):
    step, _, state = programs
    images = random_images(5000)
    rows = np.arange(BATCH, dtype=np.int32)
    alone = step.lower(state, key, rows, jax.tree.map(jnp.asarray, images), lender[1]).compile()
    now, lent = place((state, lender[1]), devices.replicated)
    data = place_images(images, devices)
    both = step.lower(now, key, place(rows, devices.rows), data, lent).compile()
    assert both.cost_analysis()["flops"] < 0.6 * alone.cost_analysis()["flops"]
    memory = both.memory_analysis()
    assert memory.argument_size_in_bytes < 0.6 * images.images.nbytes
    assert memory.temp_size_in_bytes < 0.3 * images.images.nbytes
