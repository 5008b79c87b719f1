"""Transfer, then train the target, and its He-initialized twin, and compare them."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import importers
import tlv_jax
from tlv_jax import models
from tlv_jax.errors import TLVError
from train import checkpoints
from train.config import Config, TransferOptions, resolve
from train.data import LabelledImages, Splits, eval_batches, train_order
from train.datasets import load_dataset
from train.devices import Devices, find_devices
from train.metrics import Summary, merge, summarize
from train.results import RunResult, open_run_folder, result_table, write_epochs, write_results
from train.step import (
    State,
    Support,
    Task,
    initial_state,
    make_eval_step,
    make_optimizer,
    make_train_step,
)

__all__ = ["DivergedError", "Result", "fit"]


class DivergedError(TLVError):
    """The loss of a training is no longer finite."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
      folder: the run folder, which holds all of this on disk as well.
      plan: of the transfer.
      report: of the transfer, layer by layer.
      runs: the transferred training first, then its He-initialized twin.
    """

    folder: Path
    plan: tlv_jax.TransferPlan
    report: tlv_jax.TransferReport
    runs: tuple[RunResult, ...]


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What both trainings share."""

    config: Config
    devices: Devices
    task: Task
    splits: Splits
    optimizer: optax.GradientTransformation
    evaluate: Callable[..., Any]
    order_key: jax.Array
    step_key: jax.Array


def fit(config: Config, *, console: Console | None = None) -> Result:
    """Runs one experiment: transfer, training with crossover, and the twin without either.

    Fixed settings give bit-equal results on CPU.

    Args:
      config: the settings.
      console: where to print; standard output if None.

    Raises:
      TLVError: if a setting is wrong, weights or data cannot be had, or a training diverges.
    """
    console = console or Console()
    config = resolve(config)
    devices = find_devices(config)
    pretrained = importers.load(config.source, config.source_weights, dtype=devices.dtype)
    splits = load_dataset(config)
    model = models.create(config.target, num_classes=len(splits.classes), dtype=devices.dtype)
    key_init, key_transfer, key_training = jax.random.split(jax.random.key(config.seed), 3)
    images = jnp.zeros((1, config.image_size, config.image_size, 3), devices.dtype)
    variables = jax.jit(model.init)(key_init, images)
    folder = open_run_folder(config)
    plan, params, report = _transfer(
        config.transfer, key_transfer, pretrained.params, variables["params"], folder
    )
    console.print(str(plan), highlight=False, soft_wrap=True)

    setup = _prepare(config, devices, model, pretrained, splits, key_training)
    support = Support(_features_only(pretrained.model), config.crossover_rate)
    starts = [("transferred", params, support if config.crossover_rate else None)]
    if config.baseline:
        starts.append(("he", variables["params"], None))
    runs = []
    with _progress_bar(console) as bar:
        for name, start, lender in starts:
            state = initial_state(start, variables.get("batch_stats", {}), setup.optimizer)
            lent = pretrained.variables if lender else None
            runs.append(_train(name, setup, state, lender, lent, folder, bar))
    write_results(folder, runs)
    title = f"{config.target} on {config.dataset}, test images"
    console.print(result_table(runs, title))
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, plan, report, tuple(runs))


def _transfer(
    options: TransferOptions, key: jax.Array, source: Any, target: Any, folder: Path
) -> tuple[tlv_jax.TransferPlan, Any, tlv_jax.TransferReport]:
    """Plans and applies the transfer, and writes both the plan and the report down."""
    rule = functools.partial(
        tlv_jax.rules.variance,
        keep=options.keep,
        remove=options.remove,
        pad=options.pad,
        pool=options.pool,
        shuffle=options.shuffle,
    )
    kinds = ("conv", "norm") if options.norms else ("conv",)
    plan = tlv_jax.plan_transfer(source, target, rule=rule, head=options.head, kinds=kinds)
    params = tlv_jax.apply_transfer(plan, key, source, target)
    report = tlv_jax.report(plan, source, target, params)
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "plan.txt").write_text(f"{plan}\n")
    (folder / "report.json").write_text(report.to_json())
    (folder / "report.txt").write_text(f"{report}\n")
    return plan, params, report


def _prepare(
    config: Config,
    devices: Devices,
    model: nn.Module,
    pretrained: importers.Pretrained,
    splits: Splits,
    key: jax.Array,
) -> _Setup:
    """Puts the images on the devices and builds what both trainings use."""
    preprocess = pretrained.preprocess
    task = Task(model, preprocess.mean, preprocess.std, devices.dtype)
    key_order, key_step = jax.random.split(key)
    steps = len(train_order(key_order, 0, len(splits.train), config.batch_size))
    assert config.epochs is not None  # resolved
    return _Setup(
        config=config,
        devices=devices,
        task=task,
        splits=dataclasses.replace(
            splits,
            train=jax.device_put(splits.train, devices.replicated),
            validation=jax.device_put(splits.validation, devices.replicated),
            test=jax.device_put(splits.test, devices.replicated),
        ),
        optimizer=make_optimizer(config.learning_rate, config.weight_decay, steps * config.epochs),
        evaluate=jax.jit(make_eval_step(task)),
        order_key=key_order,
        step_key=key_step,
    )


def _features_only(model: nn.Module) -> nn.Module:
    """The source as it lends features: of a VGG the 512 globally pooled ones, as published."""
    return model.clone(pool_size=1) if isinstance(model, models.VGG) else model


def _train(
    name: str,
    setup: _Setup,
    state: State,
    support: Support | None,
    support_variables: Any,
    folder: Path,
    bar: Progress,
) -> RunResult:
    """Trains from `state`, or from the last checkpoint, and tests the best weights."""
    config, devices = setup.config, setup.devices
    assert config.epochs is not None  # resolved
    step = jax.jit(make_train_step(setup.task, setup.optimizer, support), donate_argnums=0)
    # Copied: the step is donated the state, and both trainings start from the same arrays.
    state = jax.device_put(jax.tree.map(jnp.copy, state), devices.replicated)
    support_variables = jax.device_put(support_variables, devices.replicated)
    progress: dict[str, Any] = {"epochs": [], "seconds": 0.0}
    with checkpoints.open_checkpoints(folder / "checkpoints" / name) as manager:
        if config.resume and (restored := checkpoints.restore(manager, state, devices.replicated)):
            state, progress = restored
        for epoch in range(len(progress["epochs"]) + 1, config.epochs + 1):
            started = time.perf_counter()
            state, trained = _train_epoch(name, setup, step, state, support_variables, epoch, bar)
            validated = _evaluate(setup, state, setup.splits.validation)
            record = {"epoch": epoch, **_prefixed("train", trained)}
            progress["epochs"].append({**record, **_prefixed("validation", validated)})
            progress["seconds"] += time.perf_counter() - started
            write_epochs(folder / name, progress["epochs"])
            checkpoints.save(manager, state, progress, validated._asdict())
        best = checkpoints.restore(manager, state, devices.replicated, best=True)
        assert best is not None  # at least one epoch was saved
        best_state, best_progress = best
    return RunResult(
        name=name,
        test=_evaluate(setup, best_state, setup.splits.test),
        best_epoch=len(best_progress["epochs"]),
        seconds=progress["seconds"],
        epochs=tuple(progress["epochs"]),
    )


def _train_epoch(
    name: str,
    setup: _Setup,
    step: Callable[..., Any],
    state: State,
    support_variables: Any,
    epoch: int,
    bar: Progress,
) -> tuple[State, Summary]:
    images, config = setup.splits.train, setup.config
    batches = train_order(setup.order_key, epoch, len(images), config.batch_size)
    label = f"{name}, epoch {epoch} of {config.epochs}"
    task = bar.add_task(label, total=len(batches), loss="")
    total = None
    for rows in jax.device_put(batches, setup.devices.replicated):
        rows = jax.device_put(rows, setup.devices.rows)
        state, counted = step(state, setup.step_key, rows, images, support_variables)
        if total is not None:
            jax.block_until_ready(total)  # one step ahead at most, or the bar runs away
        total = counted if total is None else merge(total, counted)
        bar.advance(task)
    assert total is not None  # train_order gives one batch at least
    summary = summarize(total)
    if not math.isfinite(summary.loss):
        raise DivergedError(
            f"The loss of {name!r} became {summary.loss} in epoch {epoch}, by step "
            f"{int(state.step)}. Lower learning_rate={config.learning_rate}."
        )
    bar.update(task, loss=f"loss {summary.loss:.3f}")
    return state, summary


def _evaluate(setup: _Setup, state: State, images: LabelledImages) -> Summary:
    """Classifies a split without the support network."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    total = None
    for rows, real in eval_batches(len(images), setup.config.batch_size):
        rows, real = jax.device_put((rows, real), setup.devices.rows)
        counted = setup.evaluate(variables, rows, real, images)
        total = counted if total is None else merge(total, counted)
    assert total is not None  # no split is empty
    return summarize(total)


def _prefixed(prefix: str, summary: Summary) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in summary._asdict().items()}


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
    )
