"""Transfer, train the target and its twin without transfer, and compare them."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import importers
import tlv_jax
from train import checkpoints
from train.config import Config, resolve
from train.contents import load_on_all_hosts, show_contents
from train.data import LabelledImages, Splits, eval_batches, train_order
from train.devices import (
    Devices,
    ask_first,
    find_devices,
    is_first_process,
    join_hosts,
    place,
    place_images,
)
from train.errors import DivergedError, name_some
from train.method import method_of
from train.metrics import Summary, merge, summarize
from train.modules import build_module, parse_arguments
from train.networks import checked_target, features_only, size_lent_at
from train.normalization import seen_by_source, statistics_of
from train.optimizer import check_patterns, crossover_rate, make_optimizer
from train.recipe import Recipe, recipe_of
from train.results import (
    RunResult,
    open_run_folder,
    open_tensorboard,
    result_table,
    write_epochs,
    write_results,
    write_transfer,
)
from train.statistics import Statistics
from train.step import (
    State,
    Support,
    Task,
    initial_state,
    make_eval_step,
    make_train_step,
)
from train.target import Target

__all__ = ["Result", "run"]

CHECK_EVERY = 50  # steps; an accelerator waits whenever a loss is looked at


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returns.

    Attributes:
      folder: the run folder, which holds all of this on disk as well.
      plan: of the transfer.
      report: of the transfer, layer by layer.
      runs: the training after the transfer, then that of its twin.
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
    recipe: Recipe
    steps: int
    splits: Splits
    optimizer: optax.GradientTransformation
    evaluate: Callable[..., Any]
    order_key: jax.Array
    step_key: jax.Array


def run(
    config: Config,
    *,
    model: nn.Module | nnx.Module | None = None,
    console: Console | None = None,
) -> Result:
    """Runs one experiment: a transfer, a training with crossover, and the twin without either.

    On CPU, the same settings give bit-equal results.

    Args:
      config: the settings.
      model: the network to train, in place of what `config.target` names: any Flax module, Linen or
        NNX, that maps images `[B, H, W, 3]` to logits.
      console: where to print; standard output if None.

    Raises:
      TLVError: for a wrong setting, weights or images that cannot be had, or a loss that is not
        finite.

    Warns:
      SimilarityWarning: where source and target are so unlike that transfers mostly hurt.
      FreshHeadWarning: where the source's weights lack its classifier.
      PrefixWarning: where only a part of the source's checkpoint is the source.
    """
    if model is not None:
        kind = type(model)
        config = dataclasses.replace(config, target=f"{kind.__module__}:{kind.__qualname__}")
    config = resolve(config)
    method = method_of(config.method)
    recipe = recipe_of(config)
    arguments = parse_arguments(config.target_args)
    join_hosts(config.hosts)
    console = console or Console(quiet=not is_first_process())
    devices = find_devices(config)
    pretrained = importers.load(
        config.source,
        config.source_weights,
        image_size=size_lent_at(config),
        dtype=devices.dtype,
        prefix=config.source_prefix,
    )
    splits = load_on_all_hosts(config)
    show_contents(splits, console)
    assert config.image_size is not None  # resolved
    key_init, key_transfer, key_training = jax.random.split(jax.random.key(config.seed), 3)
    images = jnp.zeros((1, config.image_size, config.image_size, 3), devices.dtype)
    if model is None:
        model = build_module(
            config.target,
            arguments,
            num_classes=len(splits.classes),
            image_size=config.image_size,
            dtype=devices.dtype,
            key=key_init,
        )
    target = checked_target(config, model, key_init, images, len(splits.classes))
    if frozen := check_patterns(recipe, target.split(target.network.params)[0]):
        console.print(f"frozen: {name_some(frozen)}", highlight=False, soft_wrap=True)
    folder = Path(ask_first(lambda: str(open_run_folder(config, splits))))
    plan, transferred, report = _transfer(
        method, key_transfer, pretrained.network, target.network, folder
    )
    console.print(str(plan), highlight=False, soft_wrap=True)

    setup = _prepare(config, recipe, devices, target, pretrained, splits, key_training)
    rate = crossover_rate(config.crossover_rate, setup.steps, recipe)
    support = Support(features_only(pretrained.model), rate)
    starts = [("transferred", transferred, support if config.crossover_rate else None)]
    if config.baseline:
        starts.append(("he", target.network.params, None))
    runs = []
    with _progress_bar(console) as bar:
        for name, start, lender in starts:
            state = initial_state(*target.split(start), setup.optimizer, recipe)
            lent = pretrained.variables if lender else None
            runs.append(_train(name, setup, state, lender, lent, folder, bar))
    if is_first_process():
        write_results(folder, runs)
    title = f"{config.target} on {config.dataset}, test images"
    console.print(result_table(runs, title))
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, plan, report, tuple(runs))


def _transfer(
    method: tlv_jax.Method,
    key: jax.Array,
    source: tlv_jax.Network,
    target: tlv_jax.Network,
    folder: Path,
) -> tuple[tlv_jax.TransferPlan, Any, tlv_jax.TransferReport]:
    """Transfers, and writes plan and report to the run folder.

    Returns:
      The plan, new variables of the target, and the report.
    """
    plan = tlv_jax.plan_transfer(source, target, method)
    # Plans once more, in milliseconds, and warns if the two networks are unlike.
    variables = tlv_jax.transfer(source, target, key=key, method=method)
    report = tlv_jax.report(plan, source, target, variables)
    if is_first_process():
        write_transfer(folder, plan, report)
    return plan, variables, report


def _prepare(
    config: Config,
    recipe: Recipe,
    devices: Devices,
    target: Target,
    pretrained: importers.Pretrained,
    splits: Splits,
    key: jax.Array,
) -> _Setup:
    """Puts the images on the devices and builds what both trainings use."""
    source = Statistics(pretrained.preprocess.mean, pretrained.preprocess.std)
    chosen = statistics_of(config, splits.train, source)
    task = Task(target, *chosen, devices.dtype, seen_by_source(chosen, source))
    key_order, key_step = jax.random.split(key)
    steps = len(train_order(key_order, 0, len(splits.train), config.batch_size))
    assert config.epochs is not None  # resolved
    all_steps, warmup = steps * config.epochs, int(steps * recipe.warmup_epochs)
    rate, decay = config.learning_rate, config.weight_decay
    return _Setup(
        config=config,
        devices=devices,
        task=task,
        recipe=recipe,
        steps=all_steps,
        splits=dataclasses.replace(
            splits,
            train=place_images(splits.train, devices),
            validation=place_images(splits.validation, devices),
            test=place_images(splits.test, devices),
        ),
        optimizer=make_optimizer(rate, decay, all_steps, recipe, warmup=warmup),
        evaluate=jax.jit(make_eval_step(task)),
        order_key=key_order,
        step_key=key_step,
    )


def _train(
    name: str,
    setup: _Setup,
    state: State,
    support: Support | None,
    support_variables: Any,
    folder: Path,
    bar: Progress,
) -> RunResult:
    """Trains from `state`, or on from the last checkpoint, and tests the best weights."""
    config, devices = setup.config, setup.devices
    assert config.epochs is not None  # resolved
    step = jax.jit(
        make_train_step(setup.task, setup.optimizer, support, setup.recipe),
        donate_argnums=0,
        out_shardings=devices.replicated,
    )
    # Copied: the step is donated the state, and both trainings start from the same arrays.
    state = place(jax.tree.map(jnp.copy, state), devices.replicated)
    support_variables = place(support_variables, devices.replicated)
    progress: dict[str, Any] = {"epochs": [], "seconds": 0.0}
    with checkpoints.open_checkpoints(folder / "checkpoints" / name, config.best_by) as manager:
        if config.resume and (restored := checkpoints.restore(manager, state, devices.replicated)):
            state, progress = restored
        first = len(progress["epochs"]) + 1
        with open_tensorboard(folder / name, first) as writer:
            for epoch in range(first, config.epochs + 1):
                started = time.perf_counter()
                state, trained = _train_epoch(
                    name, setup, step, state, support_variables, epoch, bar
                )
                validated = _evaluate(setup, state, setup.splits.validation)
                record = {"epoch": epoch, **_prefixed("train", trained)}
                progress["epochs"].append({**record, **_prefixed("validation", validated)})
                progress["seconds"] += time.perf_counter() - started
                if is_first_process():
                    write_epochs(folder / name, progress["epochs"], writer)
                checkpoints.save(manager, state, progress, validated._asdict())
                _print_epoch(bar.console, name, config.epochs, progress["epochs"][-1])
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
    task = bar.add_task(label, total=len(batches))
    before = (epoch - 1) * len(batches)
    total, losses = None, []
    for number, rows in enumerate(batches, 1):
        rows = place(rows, setup.devices.rows)
        state, counted = step(state, setup.step_key, rows, images, support_variables)
        if total is not None:
            jax.block_until_ready(total)  # queues one step at most, so that the bar tells the truth
        total = counted if total is None else merge(total, counted)
        bar.advance(task)
        losses.append(counted.loss)
        if len(losses) == CHECK_EVERY or number == len(batches):
            _stop_if_diverged(name, config, losses, last_step=before + number)
            losses.clear()
    assert total is not None  # train_order gives one batch at least
    bar.remove_task(task)
    return state, summarize(total)


def _stop_if_diverged(name: str, config: Config, losses: list[jax.Array], last_step: int) -> None:
    values = np.array(jax.device_get(losses))
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        step = last_step - len(values) + 1 + int(wrong[0])
        raise DivergedError(
            f"The loss of {name!r} became {values[wrong[0]]} in step {step}. "
            f"Lower learning_rate={config.learning_rate}."
        )


def _evaluate(setup: _Setup, state: State, images: LabelledImages) -> Summary:
    """Classifies all images of a split."""
    total = None
    for rows, real in eval_batches(len(images), setup.config.batch_size):
        rows, real = place((rows, real), setup.devices.rows)
        counted = setup.evaluate(state.tested_params, state.model_state, rows, real, images)
        total = counted if total is None else merge(total, counted)
    assert total is not None  # no split is empty
    return summarize(total)


def _prefixed(prefix: str, summary: Summary) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in summary._asdict().items()}


def _print_epoch(console: Console, name: str, epochs: int, record: dict[str, Any]) -> None:
    console.print(
        f"{name}, epoch {record['epoch']} of {epochs}: loss {record['train_loss']:.3f}, "
        f"validation loss {record['validation_loss']:.3f}, "
        f"balanced accuracy {record['validation_balanced_accuracy']:.3f}",
        highlight=False,
        soft_wrap=True,
    )


def _progress_bar(console: Console) -> Progress:
    """A bar for the epoch that runs, below one line for each finished epoch."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
