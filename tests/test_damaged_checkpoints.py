"""Checkpoints that cannot be written, read, or used: one sentence, and the older ones stay."""

import gc
import resource
import shutil

import chex
import jax.numpy as jnp
import optax
import pytest

from train.checkpoints import open_checkpoints, restore, save
from train.errors import ConfigError, SaveError
from train.step import initial_state

# Orbax leaves coroutines behind when it cannot read or write an array.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ADAM = optax.adam(1e-3)
METRICS = {"accuracy": 0.5}


def state_at(step, optimizer=ADAM, width=20_000):
    """A state whose arrays do not fit into 20,000 bytes, also if each has a file of its own."""
    params = {"kernel": jnp.arange(width) * 1.37 + step}
    return initial_state(params, {}, optimizer).replace(step=jnp.int32(step))


def save_at(folder, *steps):
    with open_checkpoints(folder, "accuracy") as manager:
        for step in steps:
            save(manager, state_at(step), {"epochs": [step]}, METRICS)


def last(folder, like=None):
    with open_checkpoints(folder, "accuracy") as manager:
        return restore(manager, state_at(0) if like is None else like)


@pytest.fixture(autouse=True)
def coroutines_that_are_left_behind():
    """Collected here, not in the next module, where they would raise warnings."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The checkpoints of step 1, the best, and of step 2 within an epoch."""
    folder = tmp_path_factory.mktemp("two")
    save_at(folder, 1)
    with open_checkpoints(folder, "accuracy") as manager:
        save(manager, state_at(2), {"epochs": [1], "tally": {"loss": 0.1}}, None)
    return folder


@pytest.fixture
def copied(two, tmp_path):
    return shutil.copytree(two, tmp_path / "copied")


@pytest.fixture
def little_room():
    """No file may grow over 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_without_room_is_refused_and_the_older_one_is_intact(tmp_path, request):
    save_at(tmp_path, 1)
    request.getfixturevalue("little_room")
    match = "step 2 cannot be saved in .*File too large.* That of step 1 is intact: make room"
    with pytest.raises(SaveError, match=match):
        save_at(tmp_path, 2)
    state, progress = last(tmp_path)
    chex.assert_trees_all_equal(state, state_at(1))
    assert progress == {"epochs": [1]}


def test_a_first_checkpoint_without_room_is_refused(tmp_path, little_room):
    with pytest.raises(SaveError, match=r"File too large.* There is no older one"):
        save_at(tmp_path, 1)
    assert last(tmp_path) is None


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, request):
    (tmp_path / "run").mkdir()
    request.getfixturevalue("unprivileged")
    with pytest.raises(ConfigError, match=r"cannot be read or added to: .*Permission denied"):
        save_at(tmp_path / "run" / "checkpoints", 1)


def test_other_arrays_are_refused_by_name(two):
    narrow = state_at(0, width=7)
    match = r"\.params\['kernel'\] \(float32\[20000\], expected float32\[7\]\).*started with, or"
    with pytest.raises(ConfigError, match=match):
        last(two, narrow)


def test_another_optimizer_is_refused_by_name(two):
    match = r"/2 is of another network or optimizer: .*\.mu\['kernel'\] \(float32\[.*expected none"
    with pytest.raises(ConfigError, match=match):
        last(two, state_at(0, optax.sgd(1e-3)))


def largest(folder):
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()])
def test_damaged_arrays_are_noticed_and_the_older_checkpoint_is_named(copied, damage):
    damage(largest(copied / "2"))
    match = r"/2 is damaged: .*\. Remove it to go on from step 1, or start another run with --name"
    with pytest.raises(ConfigError, match=match):
        last(copied)
    shutil.rmtree(copied / "2")
    chex.assert_trees_all_equal(last(copied)[0], state_at(1))


def test_damaged_progress_is_noticed(copied):
    path = copied / "2" / "progress" / "metadata"
    path.write_text(path.read_text().replace('"loss": 0.1', '"loss": 0.2'))
    with pytest.raises(ConfigError, match=r"its values are not those that were saved\. Remove it"):
        last(copied)
    truncate(path)
    with pytest.raises(ConfigError, match=r"/2 is damaged: Unterminated string"):
        last(copied)


def test_damaged_metrics_are_one_sentence(copied):
    truncate(copied / "1" / "metrics" / "metrics")
    with pytest.raises(ConfigError, match="cannot be read or added to: Unterminated string"):
        last(copied)
