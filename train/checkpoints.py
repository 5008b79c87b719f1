"""Save and restore training states: the best and the last are kept.

Orbax writes to a temporary folder and renames it, so a run that is killed leaves no half-written
checkpoint.
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
      folder: of the checkpoints; created if it is missing.
      best_by: name of the saved metric that is highest in the best checkpoint.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every part of every save
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(
                    get_metric_fn=itemgetter(best_by),
                    n=1,
                    keep_checkpoints_without_metrics=False,  # those within an epoch
                ),
            ]
        ),
        best_fn=itemgetter(best_by),
        best_mode="max",
        cleanup_tmp_directories=True,
        # The next training step overwrites these arrays, so they must be on disk before it.
        enable_async_checkpointing=False,
    )
    names = ("state", "progress")
    with ocp.CheckpointManager(folder.resolve(), options=options, item_names=names) as manager:
        yield manager


def save(
    manager: ocp.CheckpointManager,
    state: State,
    progress: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Saves a state under its step.

    Args:
      manager: from `open_checkpoints`.
      state: what to save.
      progress: JSON values to save with it.
      metrics: of the validation images, with that of `best_by`; None within an epoch.
    """
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
    )
    manager.save(int(state.step), args=arguments, metrics=metrics)


def restore(
    manager: ocp.CheckpointManager, like: State, sharding: Sharding, *, best: bool = False
) -> tuple[State, dict[str, Any]] | None:
    """Restores the last or the best state and its progress; returns None if there is none yet.

    Args:
      manager: from `open_checkpoints`.
      like: a state of the same structure, shapes and dtypes.
      sharding: where to put the arrays.
      best: restore the best state instead of the last.
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
