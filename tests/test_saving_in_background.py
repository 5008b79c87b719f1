"""Checkpoints are written while the training goes on."""

import gc
import resource

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.checkpoints import open_checkpoints, restore, save
from train.config import Config
from train.devices import find_devices, place, shardings_of
from train.errors import SaveError
from train.step import initial_state

# Orbax leaves coroutines behind when it cannot write an array.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WIDTH = 2_000_000


def state_at(step, width=20_000, **options):
    """A state whose arrays do not fit into 20,000 bytes, also if each has a file of its own."""
    params = {"kernel": jnp.arange(width, dtype=jnp.float32) * 1.37 + step}
    state = initial_state(params, {}, optax.adam(1e-3)).replace(step=jnp.int32(step))
    return place(state, shardings_of(state, find_devices(Config(batch_size=2, **options))))


@jax.jit
def overwritten(state):
    return jax.tree.map(lambda leaf: leaf * 0 - 1, state)


@pytest.mark.parametrize("shard_params", [False, True])
def test_what_is_saved_is_the_state_of_that_moment(tmp_path, shard_params):
    options = {"width": WIDTH, "shard_params": shard_params}
    state, step = state_at(1, **options), jax.jit(overwritten, donate_argnums=0)
    for part in (state.params["kernel"], state.opt_state[0].mu["kernel"]):
        assert part.addressable_shards[0].data.size == WIDTH // (1 + shard_params)
    expected = jax.tree.map(np.array, state)
    progress = {"epochs": [{"loss": 0.1}]}
    with open_checkpoints(tmp_path, "accuracy") as manager:
        save(manager, state, progress, {"accuracy": 0.5})
        progress["epochs"][0]["loss"] = 0.2
        for _ in range(10):  # the first is donated the state, others what memory is free
            state = step(state)
        restored, progress = restore(manager, state)
    chex.assert_trees_all_equal(restored, expected)
    assert progress == {"epochs": [{"loss": 0.1}]}


def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    goes_on = []
    with open_checkpoints(tmp_path, "accuracy") as manager:
        for step in (1, 2, 3):  # a busy machine may be slow to go on, but not each time
            save(manager, state_at(step, width=WIDTH), {}, None)
            goes_on.append(not (tmp_path / f"{step}").exists())
        assert any(goes_on)
        restore(manager, state_at(0, width=WIDTH))
        assert (tmp_path / "3").exists()


@pytest.fixture
def no_room_for_the_third(tmp_path):
    """The checkpoints of steps 1, the best, and 2; then no file may grow over 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_checkpoints(tmp_path, "accuracy") as manager:
        for step in (1, 2):
            save(manager, state_at(step), {"step": step}, {"accuracy": 1 / step})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()  # of the coroutines, which would warn in the next module
    with open_checkpoints(tmp_path, "accuracy") as manager:
        for best, step in ((True, 1), (False, 2)):
            state, progress = restore(manager, state_at(0), best=best)
            chex.assert_trees_all_equal(state, state_at(step))
            assert progress == {"step": step}


def go_on(manager):
    save(manager, state_at(4), {}, {"accuracy": 0.9})


def read_the_best(manager):
    restore(manager, state_at(0), best=True)


def stop(manager):
    raise KeyboardInterrupt


def save_the_third(folder, then):
    with open_checkpoints(folder, "accuracy") as manager:
        save(manager, state_at(3), {"step": 3}, {"accuracy": 0.9})
        then(manager)
        raise AssertionError("nothing was raised")


@pytest.mark.parametrize("then", [go_on, read_the_best, stop])
def test_an_error_of_the_writing_is_raised_before_anything_else(no_room_for_the_third, then):
    match = r"step 3 cannot be saved in .*File too large.* That of step 2 is intact: make room"
    with pytest.raises(SaveError, match=match):
        save_the_third(no_room_for_the_third, then)


def test_the_cause_is_named_wherever_it_stands_in_a_long_error(tmp_path):
    error = ValueError(f"OUT_OF_RANGE: {'a' * 200}: File too large [{'b' * 200}]")
    with open_checkpoints(tmp_path, "accuracy") as manager:
        manager.wait_until_finished = raises(error)
        with pytest.raises(SaveError, match=r"OUT_OF_RANGE: a+ \.\.\. File too large\. There is"):
            save(manager, state_at(1), {}, None)
        del manager.wait_until_finished


def raises(error):
    def raising():
        raise error

    return raising
