"""One training: epochs, their checkpoints, and the test of the best weights."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console
from rich.progress import Progress

from train import checkpoints
from train.batches import batches
from train.config import Config
from train.data import Images, eval_batches, train_order
from train.devices import is_first_process, place, shardings_of
from train.errors import DivergedError, Stopped
from train.interruptions import Watch
from train.lending import Lending
from train.metrics import Summary, Tally, from_json, merge, summarize, to_json
from train.results import RunResult, open_tensorboard, write_epochs
from train.setup import Setup
from train.step import State, initial_state, make_train_step, with_adapter
from train.support import Adapter
from train.tracking import Tracker

__all__ = ["train"]

CHECK_EVERY = 50  # steps; an accelerator waits whenever a loss is looked at


@dataclasses.dataclass(frozen=True)
class _Training:
    """One of the trainings of a run."""

    name: str
    setup: Setup
    step: Callable[..., tuple[State, Tally]]
    support_variables: Any
    manager: ocp.CheckpointManager
    folder: Path
    watch: Watch
    bar: Progress
    tracker: Tracker
    started: float  # on the clock of time.perf_counter, less the seconds before a resumption


def train(
    name: str,
    setup: Setup,
    start: tuple[Any, Any],
    lending: Lending | None,
    folder: Path,
    watch: Watch,
    bar: Progress,
    tracker: Tracker,
) -> RunResult:
    """Trains from `start`, or on from the last checkpoint, and tests the best weights.

    The progress that is saved with each state is in JSON values: the records of all finished
    epochs, the seconds so far, and the tally of the epoch that runs, if it has begun.

    Args:
      name: of this training.
      setup: what it shares with the other.
      start: parameters and model state before the first step, as of `Target.split`.
      lending: the source, which lends features or teaches; None to train without.
      folder: of the run.
      watch: says when to save within an epoch, and when to stop.
      bar: shows the epoch that runs; its console is told of each that is finished.
      tracker: is told of each that is finished, too.

    Raises:
      DivergedError: if the loss or a parameter is not finite any more.
      SaveError: if something cannot be written.
      ConfigError: if a checkpoint to resume from is damaged, or of another network or optimizer.
      Stopped: after a signal, once the step that ran is saved and on the disk.
    """
    config, replicated = setup.config, setup.devices.replicated
    assert config.epochs is not None  # resolved
    support, lent = (lending.support, lending.lent) if lending else (None, None)
    state = _first_state(setup, start, lending.adapter if lending else None)
    step = jax.jit(
        make_train_step(setup.task, setup.optimizer, support, setup.recipe),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated),
    )
    support_variables = place(lent, replicated)
    progress: dict[str, Any] = {"epochs": [], "seconds": 0.0, "tally": None}
    path = folder / "checkpoints" / name
    with checkpoints.open_checkpoints(path, config.best_by) as manager:
        if config.resume and (restored := checkpoints.restore(manager, state)):
            state, progress = restored
        started = time.perf_counter() - progress["seconds"]
        training = _Training(
            name, setup, step, support_variables, manager, folder, watch, bar, tracker, started
        )
        first = len(progress["epochs"]) + 1
        with open_tensorboard(folder / name, first) as writer:
            for _ in range(first, config.epochs + 1):
                state, progress = _train_epoch(training, state, progress, writer)
        best = checkpoints.restore(manager, state, best=True)
        assert best is not None  # at least one epoch was saved
        best_state, best_progress = best
    return RunResult(
        name=name,
        test=_evaluate(setup, best_state, setup.splits.test),
        best_epoch=len(best_progress["epochs"]),
        seconds=progress["seconds"],
        epochs=tuple(progress["epochs"]),
    )


def _first_state(setup: Setup, start: tuple[Any, Any], adapter: Adapter | None) -> State:
    """The state before the first step.

    Only its parameters are ever whole on a device if it is to be divided.
    """

    def make(params: Any, model_state: Any) -> State:
        state = initial_state(params, model_state, setup.optimizer, setup.recipe)
        if adapter is not None:
            state = with_adapter(state, adapter, setup.adapter_optimizer)
        # Copied: the step is donated the state, and both trainings start from the same arrays.
        return jax.tree.map(jnp.copy, state)

    shardings = shardings_of(jax.eval_shape(make, *start), setup.devices)
    return jax.jit(make, out_shardings=shardings)(*place(start, setup.devices.replicated))


def _train_epoch(
    training: _Training, state: State, progress: dict[str, Any], writer: Any
) -> tuple[State, dict[str, Any]]:
    """Trains the epoch to its end, validates, records and saves."""
    name, setup = training.name, training.setup
    epoch = len(progress["epochs"]) + 1
    with contextlib.closing(_batches_left(setup, state, epoch)) as left:
        state, trained = _take_steps(training, state, progress, left)
    validated = _evaluate(setup, state, setup.splits.validation)
    record = {
        "epoch": epoch,
        **_prefixed("train", summarize(trained)),
        **_prefixed("validation", validated),
    }
    progress = {**progress, "epochs": [*progress["epochs"], record], "tally": None}
    if is_first_process():
        write_epochs(training.folder / name, progress["epochs"], writer)
    _save(training, state, progress, validated._asdict())
    training.tracker.epoch(name, record)
    _print_epoch(training.bar.console, name, setup.config.epochs, record)
    if training.watch.due(int(state.step), agree=True).stop:
        raise _stopped(training, state)
    return state, progress


def _batches_left(setup: Setup, state: State, epoch: int) -> Generator[Any, None, None]:
    """The batches of an epoch from the step on that the state is at."""
    images = setup.splits.train
    order = train_order(setup.order_key, epoch, len(images), setup.config.batch_size)
    done = int(state.step) - (epoch - 1) * len(order)
    return batches(images, order[done:], setup.devices.rows)


def _take_steps(
    training: _Training, state: State, progress: dict[str, Any], left: Iterator[Any]
) -> tuple[State, Tally]:
    """Takes the steps of the epoch that are left, and tallies all of it."""
    name, setup, bar = training.name, training.setup, training.bar
    epoch = len(progress["epochs"]) + 1
    assert setup.config.epochs is not None  # resolved
    count = setup.steps // setup.config.epochs
    before = (epoch - 1) * count
    done = int(state.step) - before
    total = progress.get("tally") and place(from_json(progress["tally"]), setup.devices.replicated)
    label = f"{name}, epoch {epoch} of {setup.config.epochs}"
    task = bar.add_task(label, total=count, completed=done, batch=setup.config.batch_size)
    losses = []
    for number, (rows, images) in enumerate(left, done + 1):
        state, counted = training.step(
            state, setup.step_key, rows, images, training.support_variables
        )
        if total is not None:
            jax.block_until_ready(total)  # queues one step at most, so that the bar tells the truth
        total = counted if total is None else merge(total, counted)
        bar.advance(task)
        losses.append(counted.loss)
        last = number == count
        due = training.watch.due(before + number)
        if due.save or last or len(losses) == CHECK_EVERY:
            _stop_if_diverged(name, setup.config, losses, state.params, before + number)
            losses.clear()
        if due.save and not last:  # an epoch is saved at its end, once it is validated
            _save(training, state, {**progress, "tally": to_json(total)})
            if due.stop:
                raise _stopped(training, state)
    assert total is not None  # train_order gives one batch at least
    bar.remove_task(task)
    return state, total


def _save(
    training: _Training,
    state: State,
    progress: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """Saves the state and the progress, with the time that was taken."""
    progress["seconds"] = time.perf_counter() - training.started
    checkpoints.save(training.manager, state, progress, metrics)
    training.watch.restart()


def _stopped(training: _Training, state: State) -> Stopped:
    return Stopped(int(state.step), training.name, training.folder, training.watch.signal)


def _stop_if_diverged(
    name: str, config: Config, losses: list[jax.Array], params: Any, last_step: int
) -> None:
    """Looks at the losses of the last steps, and at the parameters after them."""
    values = np.array(jax.device_get(losses))
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        step = last_step - len(values) + 1 + int(wrong[0])
        what = f"The loss of {name!r} became {values[wrong[0]]} in step {step}"
    elif not _all_finite(params):
        what = f"A parameter of {name!r} is not finite after step {last_step}"
    else:
        return
    raise DivergedError(f"{what}. Lower learning_rate={config.learning_rate}.")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)
    return jax.tree.reduce(jnp.logical_and, finite, jnp.array(True))


def _evaluate(setup: Setup, state: State, images: Images) -> Summary:
    """Classifies all images of a split."""
    total = None
    covered = list(eval_batches(len(images), setup.config.batch_size))
    order = np.stack([rows for rows, _ in covered])
    with contextlib.closing(batches(images, order, setup.devices.rows)) as read:
        for (rows, data), (_, real) in zip(read, covered, strict=True):
            real = place(real, setup.devices.rows)
            counted = setup.evaluate(state.tested_params, state.model_state, rows, real, data)
            total = counted if total is None else merge(total, counted)
    assert total is not None  # no split is empty
    return summarize(total)


def _prefixed(prefix: str, summary: Summary) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in summary._asdict().items()}


def _print_epoch(console: Console, name: str, epochs: int | None, record: dict[str, Any]) -> None:
    console.print(
        f"{name}, epoch {record['epoch']} of {epochs}: loss {record['train_loss']:.3f}, "
        f"validation loss {record['validation_loss']:.3f}, "
        f"balanced accuracy {record['validation_balanced_accuracy']:.3f}",
        highlight=False,
        soft_wrap=True,
    )
