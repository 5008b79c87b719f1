"""Save and restore training states: the best and the last are kept.

Orbax writes in the background to a temporary folder and renames it, so a run that is killed leaves
no half-written checkpoint, and removes older ones only then. It does not notice when a byte changes
on the disk, nor say well whose arrays these are, so a digest and a description of all arrays are
saved with them.
"""

import contextlib
import copy
import errno
import json
import logging
import os
import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.digests import digest_of
from train.errors import ConfigError, SaveError, name_some
from train.step import State

__all__ = ["open_checkpoints", "read_arrays", "read_best", "restore", "save"]


@contextlib.contextmanager
def open_checkpoints(folder: Path, best_by: str) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of one training. Once they are closed, all are on the disk.

    Args:
      folder: of the checkpoints; created if it is missing.
      best_by: name of the saved metric that is highest in the best checkpoint.

    Raises:
      ConfigError: if there are checkpoints that cannot be read.
      SaveError: if the last one could not be written; older checkpoints are intact.
    """
    # Orbax logs every part of every save, and every error that it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
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
    )
    names = ("state", "progress")
    try:
        manager = ocp.CheckpointManager(folder.resolve(), options=options, item_names=names)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The checkpoints in {folder} cannot be read or added to: {_short(error)}. Start "
            "another run with --name."
        ) from error
    try:
        yield manager
    finally:
        try:
            _wait(manager)
        finally:
            # Orbax has several errors of one save that failed, of which the first was raised.
            with contextlib.suppress(Exception):
                manager.close()


def save(
    manager: ocp.CheckpointManager,
    state: State,
    progress: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Saves a state under its step, in the background.

    It returns once the arrays may be donated. Orbax has its copy of them by then; on CPUs this is
    a view, but JAX donates no array that is viewed.

    Args:
      manager: from `open_checkpoints`.
      state: what to save.
      progress: JSON values to save with it.
      metrics: of the validation images, with that of `best_by`; None within an epoch.

    Raises:
      SaveError: if it cannot be written, or the one before could not be; older checkpoints are
        intact. An error in the background is raised by whatever waits for it: the next `save` or
        `restore`, or the end of `open_checkpoints`.
    """
    _wait(manager)  # here, as the error of the one before names its own step
    kept = {"arrays": _described(state), "sha256": _digest(state, progress)}
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        # Written later, when the caller may have changed it.
        progress=ocp.args.JsonSave({**copy.deepcopy(progress), "state": kept}),
    )
    step = int(state.step)
    try:
        manager.save(step, args=arguments, metrics=metrics)
    except Exception as error:  # Orbax raises what its threads and TensorStore do
        raise _not_saved(manager, step, error) from error


def _wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is on the disk.

    Raises:
      SaveError: if it could not be written, once.
    """
    step = manager.latest_step()  # Orbax counts the one that is being written
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise _not_saved(manager, step, error) from error


def _not_saved(manager: ocp.CheckpointManager, step: int | None, error: Exception) -> SaveError:
    with contextlib.suppress(OSError):
        manager.reload()  # the list lacks what the failed one was to replace
    older = manager.latest_step()
    has = "There is no older one" if older is None else f"That of step {older} is intact"
    return SaveError(
        f"The checkpoint of step {step} cannot be saved in {manager.directory}: "
        f"{_short(error)}. {has}: make room, or allow it, and go on with --resume."
    )


def restore(
    manager: ocp.CheckpointManager, like: State, *, best: bool = False
) -> tuple[State, dict[str, Any]] | None:
    """Restores the last or the best state and its progress; returns None if there is none yet.

    Args:
      manager: from `open_checkpoints`.
      like: a state of the same structure, shapes and dtypes, on the devices where to put this one.
        It may have been saved from others.
      best: restore the best state instead of the last.

    Raises:
      ConfigError: if the checkpoint is damaged, or has other arrays than `like`.
      SaveError: as `save`, if one was being written.
    """
    _wait(manager)
    step = manager.best_step() if best else manager.latest_step()
    if step is None:
        return None
    try:
        progress = _restore_progress(manager, step)
        kept = progress.pop("state", None)  # missing in checkpoints of an earlier version
    except Exception as error:
        raise _damaged(manager, step, _short(error)) from error
    if kept is not None:
        _check_arrays(f"{manager.directory / str(step)}", kept["arrays"], _described(like))
    try:
        state = _restore_state(manager, step, like)
    except Exception as error:
        raise _damaged(manager, step, _short(error)) from error
    if kept is not None and kept["sha256"] != _digest(state, progress):
        raise _damaged(manager, step, "its values are not those that were saved")
    return state, progress


def _restore_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    restored: Any = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
    return restored.progress


def _restore_state(manager: ocp.CheckpointManager, step: int, like: State) -> State:
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    restored: Any = manager.restore(step, args=arguments)
    return restored.state


def _described(state: State) -> dict[str, str]:
    """Type and shape of each array, by its path."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _digest(state: Any, progress: dict[str, Any]) -> str:
    return digest_of(state, json.dumps(progress, sort_keys=True))


def _check_arrays(where: str, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raises ConfigError if a checkpoint has other arrays than the run trains."""
    paths = [path for path in {**expected, **saved} if saved.get(path) != expected.get(path)]
    if paths:
        different = [
            f"{path} ({saved.get(path, 'missing')}, expected {expected.get(path, 'none')})"
            for path in paths
        ]
        raise ConfigError(
            f"The checkpoint {where} is of another network or optimizer: "
            f"{name_some(different)}. Resume with those that the run was started with, or start "
            "another with --name."
        )


def _damaged(manager: ocp.CheckpointManager, step: int, why: str) -> ConfigError:
    others = [other for other in manager.all_steps() if other != step]
    remedy = f"Remove it to go on from step {max(others)}, or start" if others else "Start"
    return ConfigError(
        f"The checkpoint {manager.directory / str(step)} is damaged: {why}. {remedy} another run "
        "with --name."
    )


def _short(error: Exception, half: int = 140) -> str:
    """The first line of what Orbax says, which can go on for pages, and the system's cause."""
    line = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    if len(line) <= 2 * half:
        return line
    causes = map(os.strerror, errno.errorcode)  # before it or after it, all arrays are described
    return f"{line[:half]} ... {next((cause for cause in causes if cause in line), line[-half:])}"


def read_arrays(folder: Path) -> Any:
    """Reads an Orbax checkpoint of any tree, as nested dicts and lists of NumPy arrays.

    Args:
      folder: as `StandardCheckpointer.save` writes it.

    Raises:
      ConfigError: if it cannot be read.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found: Any = checkpointer.metadata(folder.resolve()).item_metadata
            if found is None:
                raise ValueError("it holds no checkpoint")
            # On whatever devices the arrays were: they come to the host.
            to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.tree)
            arguments = ocp.args.PyTreeRestore(restore_args=to_host)
            return checkpointer.restore(folder.resolve(), args=arguments)
    except Exception as error:
        raise ConfigError(
            f"{folder} cannot be read ({_short(error)}), expected what StandardCheckpointer of "
            "Orbax writes, of arrays. Of a checkpoint manager's folder give that of one item, such "
            "as 100/default."
        ) from error


def read_best(folder: Path, best_by: str) -> tuple[dict[str, Any], int]:
    """Reads the best state of a training of any network and optimizer.

    Args:
      folder: of the checkpoints, in which another process may save.
      best_by: as for `open_checkpoints`.

    Returns:
      The state as nested dicts and lists of NumPy arrays, and its step.

    Raises:
      ConfigError: if there is none yet, or it is damaged.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    options = ocp.CheckpointManagerOptions(
        best_fn=itemgetter(best_by), best_mode="max", read_only=True
    )
    names = ("state", "progress")
    with ocp.CheckpointManager(folder.resolve(), options=options, item_names=names) as manager:
        step = manager.best_step()
        if step is None:
            raise ConfigError(f"There is no finished epoch in {folder}. Give another run.")
        path = folder / str(step)
        state = read_arrays(path / "state")
        try:
            progress = _restore_progress(manager, step)
            kept = progress.pop("state")
            leaves = {_plain(k): leaf for k, leaf in jax.tree_util.tree_leaves_with_path(state)}
            saved = _digest([leaves[_plain(keys)] for keys in kept["arrays"]], progress)
        except Exception as error:
            raise ConfigError(f"{path} is damaged: {_short(error)}. Give another run.") from error
    if saved != kept["sha256"]:
        raise ConfigError(
            f"{path} is damaged: its values are not those that were saved. Give another run."
        )
    return state, step


def _plain(keys: Any) -> str:
    """One name for an attribute `.a`, a key `['a']` and an index `[0]`, which Orbax may swap."""
    text = keys if isinstance(keys, str) else jax.tree_util.keystr(keys)
    return "/".join(map("".join, re.findall(r"\.(\w+)|\['(.*?)'\]|\[(\d+)\]", text)))
