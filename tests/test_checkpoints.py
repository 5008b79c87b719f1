import chex
import jax.numpy as jnp
import optax
import pytest

from train.checkpoints import open_checkpoints, restore, save
from train.step import initial_state

OPTIMIZER = optax.adamw(1e-3)


def state_at(step):
    params = {"conv": {"kernel": jnp.full((2, 2), float(step), jnp.bfloat16)}}
    state = initial_state(params, {"bn": {"mean": jnp.ones(2) * step}}, OPTIMIZER)
    return state.replace(step=jnp.int32(step))


def metrics(score):
    return {"accuracy": score, "balanced_accuracy": 1 - score}


def save_all(folder, scores, best_by="accuracy"):
    with open_checkpoints(folder, best_by) as manager:
        for step, score in scores.items():
            save(manager, state_at(step), {"epochs": [step]}, metrics(score))


def test_nothing_to_restore_is_none(tmp_path):
    with open_checkpoints(tmp_path, "accuracy") as manager:
        assert restore(manager, state_at(0)) is None


@pytest.mark.parametrize(
    ("scores", "best_by", "best"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.4}, "accuracy", 2),
        ({1: 0.1, 2: 0.9, 3: 0.4}, "balanced_accuracy", 1),
        ({1: 0.5}, "accuracy", 1),
        ({1: 0.1, 2: 0.2, 3: 0.3}, "accuracy", 3),
    ],
)
def test_the_best_and_the_last_are_kept_whole(tmp_path, scores, best_by, best):
    save_all(tmp_path, scores, best_by)
    last = max(scores)
    with open_checkpoints(tmp_path, best_by) as manager:
        assert set(manager.all_steps()) == {best, last}
        for step, is_best in ((last, False), (best, True)):
            state, progress = restore(manager, state_at(0), best=is_best)
            chex.assert_trees_all_equal(state, state_at(step))
            chex.assert_trees_all_equal_dtypes(state, state_at(step))
            assert progress == {"epochs": [step]}


def test_a_save_that_was_killed_is_passed_over(tmp_path):
    save_all(tmp_path, {1: 0.5})
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    with open_checkpoints(tmp_path, "accuracy") as manager:
        state, _ = restore(manager, state_at(0))
        assert int(state.step) == 1
        save(manager, state_at(2), {"epochs": [2]}, metrics(0.6))
        assert manager.latest_step() == 2


def test_equal_scores_keep_one_best_that_reopening_agrees_on(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.2})
    kept = set()
    for _ in range(2):
        with open_checkpoints(tmp_path, "accuracy") as manager:
            kept.add((manager.best_step(), tuple(manager.all_steps())))
    assert len(kept) == 1
    ((best, steps),) = kept
    assert best in (1, 2, 3)
    assert set(steps) == {best, 4}
