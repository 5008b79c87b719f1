"""Save and restore training states; the best and the last are kept.

Orbax writes to a temporary folder and renames it, so a run that is killed at any moment leaves
whole checkpoints only.
"""

import contextlib
import logging
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.step import State

__all__ = ["open_checkpoints", "restore", "save"]


@contextlib.contextmanager
def open_checkpoints(folder: Path, best_by: str) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of one training.

    Args:
      folder: that holds them; made if it is not there.
      best_by: which of the metrics that are saved along is highest in the best.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of every save
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(get_metric_fn=itemgetter(best_by), reverse=False, n=1),
            ]
        ),
        best_fn=itemgetter(best_by),
        best_mode="max",
        cleanup_tmp_directories=True,
        # The next step is donated the very arrays that would still be being written.
        enable_async_checkpointing=False,
    )
    names = ("state", "progress")
    with ocp.CheckpointManager(folder.resolve(), options=options, item_names=names) as manager:
        yield manager


def save(
    manager: ocp.CheckpointManager,
    state: State,
    progress: dict[str, Any],
    metrics: dict[str, float],
) -> None:
    """Saves a state under its step.

    Args:
      manager: from `open_checkpoints`.
      state: what to save.
      progress: JSON values that go with it.
      metrics: of the validation images, `best_by` among them.
    """
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
    )
    manager.save(int(state.step), args=arguments, metrics=metrics)


def restore(
    manager: ocp.CheckpointManager, like: State, sharding: Sharding, *, best: bool = False
) -> tuple[State, dict[str, Any]] | None:
    """Restores the last state, or the best, with its progress; None if there is none yet.

    Args:
      manager: from `open_checkpoints`.
      like: a state of the same structure, shapes and dtypes.
      sharding: where to put the arrays.
      best: the best instead of the last.
    """
    step = manager.best_step() if best else manager.latest_step()
    if step is None:
        return None
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    arguments = ocp.args.Composite(
        state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore()
    )
    restored: Any = manager.restore(step, args=arguments)
    return restored.state, restored.progress
