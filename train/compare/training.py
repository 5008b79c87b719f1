"""Train several trainings of one start in one program, and measure after each epoch."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.adapter import draw_adapter
from train.compare.rows import METRICS, Row
from train.compare.settings import CLASSIFIERS
from train.compare.starts import Start
from train.compare.study import Programs, Study
from train.compare.trainings import Training
from train.data import PARTS, eval_batches, train_order
from train.metrics import Summary, Tally, merge, summarize, tally
from train.networks import keys_of
from train.step import State, initial_state, with_adapter
from train.support import Adapter, Lent

__all__ = ["failed_rows", "run_group"]


class _Job(NamedTuple):
    """A group of trainings, the first axis `S` of its arrays.

    Attributes:
      group: the trainings.
      programs: their steps.
      rates: `[S]`, the highest learning rates.
      step_keys: `[S]`, for augmentation, dropout and crossover.
      lent: what the source lends, as `make_train_step` takes it, or None.
    """

    group: Sequence[Training]
    programs: Programs
    rates: jax.Array
    step_keys: jax.Array
    lent: Any


def run_group(
    study: Study, group: Sequence[Training], begin: Callable[[int], Start]
) -> Iterator[list[Row]]:
    """Trains a group and yields its rows after each epoch, one for each training that goes on.

    A training whose loss is no longer finite gets one last row that says so.

    Args:
      study: what all trainings share.
      group: trainings of one start.
      begin: makes this start for a seed. Not called for a classifier.

    Raises:
      TLVError: if the start cannot be made.
      JaxRuntimeError: if the device cannot run it.
    """
    if group[0].start in CLASSIFIERS:
        yield _classifier_rows(study, group)
        return
    started = time.perf_counter()
    assert study.settings.epochs is not None  # resolved
    job, states = _begin(study, group, begin)
    lost: set[Training] = set()
    for epoch in range(1, study.settings.epochs + 1):
        states, trained = _train_epoch(study, job, states, epoch)
        tallies = [trained, *(_evaluate(study, job, states, part) for part in PARTS[1:])]
        seconds = time.perf_counter() - started
        rows = [
            _row(study, training, epoch, [_summary(tally, number) for tally in tallies], seconds)
            for number, training in enumerate(group)
            if training not in lost
        ]
        yield rows
        lost.update(row.training for row in rows if row.status == "diverged")
        if len(lost) == len(group):
            return


def failed_rows(group: Sequence[Training], error: Exception) -> list[Row]:
    """The rows of trainings that the device could not run."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    note = f"{first}. If memory is short, lower vmap."
    nothing = dict.fromkeys(METRICS, math.nan)
    return [Row(training, 0, nothing, 0.0, "failed", note) for training in group]


def _begin(
    study: Study, group: Sequence[Training], begin: Callable[[int], Start]
) -> tuple[_Job, State]:
    """The programs of a group, and the states before the first step, stacked."""
    seeds = [training.seed for training in group]
    starts = {seed: begin(seed) for seed in dict.fromkeys(seeds)}
    states = {seed: _state(study, seed, start) for seed, start in starts.items()}
    first = starts[seeds[0]]
    job = _Job(
        group=group,
        programs=study.programs(first.statistics, first.crossover, first.distill),
        rates=jnp.array([training.learning_rate for training in group]),
        step_keys=jnp.stack([keys_of(seed).step for seed in seeds]),
        lent=_lent(study, first),
    )
    return job, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(states[seed] for seed in seeds))


def _state(study: Study, seed: int, start: Start) -> State:
    """The state before the first step, which is the same for all learning rates."""
    variables = study.target(seed).split(start.variables)
    state = initial_state(*variables, study.optimizer(0.0), study.recipe)
    if not start.crossover or not study.widths or study.recipe.crossover_adapter != "learned":
        return state
    adapter = draw_adapter(jax.random.fold_in(keys_of(seed).init, 1), study.widths)
    return with_adapter(state, Adapter(adapter), study.adapter_optimizer(0.0))


def _lent(study: Study, start: Start) -> Any:
    """What a step gets of the source."""
    if not start.crossover and not start.distill:
        return None
    projection = study.projection() if start.crossover else None
    teacher = study.classifier("probe").linear if start.distill else None
    return Lent(jax.device_put(study.source.variables), teacher, projection)


def _train_epoch(study: Study, job: _Job, states: State, epoch: int) -> tuple[State, Tally]:
    images = study.splits.train
    orders = [
        train_order(keys_of(training.seed).order, epoch, len(images), study.settings.batch_size)
        for training in job.group
    ]
    total = None
    for rows in np.stack(orders, axis=1):
        states, counted = job.programs.step(
            states, job.rates, job.step_keys, rows, images, job.lent
        )
        if total is not None:
            jax.block_until_ready(total)  # queues one step at most
        total = counted if total is None else merge(total, counted)
    assert total is not None  # train_order gives one batch at least
    return states, total


def _evaluate(study: Study, job: _Job, states: State, part: str) -> Tally:
    """Counts over a part of the images, for each training."""
    images, total = getattr(study.splits, part), None
    for rows, real in eval_batches(len(images), study.settings.batch_size):
        counted = job.programs.evaluate(
            states.tested_params, states.model_state, rows, real, images
        )
        total = counted if total is None else merge(total, counted)
    assert total is not None  # no part is empty
    return total


def _summary(tallies: Tally, number: int) -> Summary:
    return summarize(jax.tree.map(lambda leaf: leaf[number], tallies))


def _row(
    study: Study, training: Training, epoch: int, parts: Sequence[Summary], seconds: float
) -> Row:
    """The row of one epoch."""
    if not all(math.isfinite(summary.loss) for summary in parts):
        return Row(training, epoch, _metrics(parts), seconds, "diverged", "a loss is not finite")
    status = "done" if epoch == study.settings.epochs else "training"
    return Row(training, epoch, _metrics(parts), seconds, status)


def _classifier_rows(study: Study, group: Sequence[Training]) -> list[Row]:
    """One result for all seeds: nothing in a classifier is random."""
    started, start = time.perf_counter(), group[0].start
    probe, parts = study.classifier(start), []
    for part in PARTS:
        logits = probe.linear.logits(study.inputs[start](part))
        parts.append(summarize(tally(logits, getattr(study.splits, part).labels)))
    seconds, metrics = time.perf_counter() - started, _metrics(parts)
    note = f"weight penalty {probe.penalty:g}"
    return [Row(training, 0, metrics, seconds, "done", note) for training in group]


def _metrics(parts: Sequence[Summary]) -> dict[str, float]:
    """Names the metrics of the training, validation and test images."""
    return {
        f"{name}_{metric}": value
        for name, summary in zip(PARTS, parts, strict=True)
        for metric, value in summary._asdict().items()
    }
