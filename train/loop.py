"""Transfer, train the target and its twin without transfer, and compare them."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import flax.nnx as nnx
import jax
from rich.console import Console

import importers
import tlv_jax
from train.config import Config
from train.contents import check_hosts, check_weights, known_files, show_contents
from train.data import Splits
from train.datasets import load_dataset
from train.devices import (
    Devices,
    ask_first,
    fail_together,
    find_devices,
    is_first_process,
    join_hosts,
    of_first_process,
)
from train.distillation import distillation_of
from train.errors import name_some
from train.fitting import first_images
from train.interruptions import watch
from train.lending import as_first_process_has_it, hints_of, lending_of
from train.machine import note_machine
from train.method import method_of
from train.modules import parse_arguments
from train.networks import Keys, expected_by_sources, keys_of, load_sources, make_target
from train.normalization import expected_statistics, seen_by_source, statistics_of
from train.optimizer import check_patterns
from train.progress import progress_bar
from train.recipe import recipe_of
from train.resolve import resolve
from train.results import (
    RunResult,
    result_table,
    write_normalization,
    write_results,
    write_transfer,
)
from train.run_folder import open_run_folder
from train.setup import prepare
from train.starts import Transferred, fit, starts_of, transfer
from train.statistics import Statistics
from train.step import Task
from train.target_weights import load_target_weights, with_weights
from train.tracking import check_tracking, open_tracker
from train.training import train

__all__ = ["Result", "run"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returns.

    Attributes:
      folder: the run folder, which holds all of this on disk as well.
      plan: of the transfer; None if there is none, by `--method none` or `fit`.
      report: of the transfer or fit, layer by layer; None if there is none.
      runs: the training that was asked for, then that of its twin, if it has one.
    """

    folder: Path
    plan: tlv_jax.TransferPlan | None
    report: tlv_jax.TransferReport | tlv_jax.FitReport | None
    runs: tuple[RunResult, ...]


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
      TLVError: for a wrong setting, weights or images that cannot be had, a loss that is not
        finite, a run folder that is in use, damaged or full, or another host that cannot begin.
      Stopped: a KeyboardInterrupt, after SIGTERM or Ctrl-C, once the step that ran is saved. A
        second signal acts at once.

    Warns:
      SimilarityWarning: where source and target are so unlike that transfers mostly hurt.
      FreshHeadWarning: where the source's weights lack its classifier, or the target's own are for
        another number of classes.
      PrefixWarning: where only a part of the source's checkpoint is the source.
      UserWarning: if Weights & Biases fails, which the run goes on without, or if parameters are to
        be divided over one device.
    """
    if model is not None:
        kind = type(model)
        config = dataclasses.replace(config, target=f"{kind.__module__}:{kind.__qualname__}")
    config = resolve(config)
    method = method_of(config.method)
    recipe = recipe_of(config)
    distillation_of(config.distill)
    parse_arguments(config.target_args)  # refused before anything is loaded
    check_tracking(config)
    join_hosts(config.hosts)
    console = console or Console(quiet=not is_first_process())
    devices = find_devices(config)
    keys = keys_of(config.seed)
    with fail_together():
        sources = load_sources(config, devices.dtype)
        splits = load_dataset(config, known_files(config))
        show_contents(splits, console)
        task = _task(config, devices, splits, keys, model, console)
        if frozen := check_patterns(recipe, task.target.split(task.target.network.params)[0]):
            console.print(f"frozen: {name_some(frozen)}", highlight=False, soft_wrap=True)
        made = _transferred(config, method, sources, task, splits, keys, console)
    check_hosts(splits, ([source.variables for source in sources], task.target.network.params))
    if made is not None:
        made = made._replace(variables=of_first_process(made.variables))
    with fail_together():  # what cannot be trained is refused before there is a folder
        setup = prepare(config, recipe, devices, task, splits, keys)
        hints = hints_of(config, sources, task.target, made and made.plan)
    starts = starts_of(config, task.target, made)
    with contextlib.ExitStack() as held:
        folder = Path(ask_first(lambda: str(held.enter_context(open_run_folder(config, splits)))))
        with fail_together():
            if sources and is_first_process():
                check_weights(folder, config.sources, [each.variables for each in sources])
            _tell_start(config, task, made, folder, console)
            key = jax.random.fold_in(keys.init, 1)
            lending = lending_of(setup, sources, hints, splits, key, console)
        lending = as_first_process_has_it(lending)
        tracker = held.enter_context(open_tracker(config, folder))
        watched = held.enter_context(watch(config.save_every_steps, config.save_every_minutes))
        bar = held.enter_context(progress_bar(console))
        runs = []
        for start in starts:
            begun, lent = task.target.split(start.variables), lending if start.lent else None
            result = train(start.name, setup, begun, lent, folder, watched, bar, tracker)
            tracker.result(result)
            runs.append(result)
        if is_first_process():
            write_results(folder, runs)
    console.print(result_table(runs, f"{config.target} on {config.dataset}, test images"))
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, made and made.plan, made and made.report, tuple(runs))


def _task(
    config: Config,
    devices: Devices,
    splits: Splits,
    keys: Keys,
    model: nn.Module | nnx.Module | None,
    console: Console,
) -> Task:
    """The target, with its own initialization or the weights it was given, and its images."""
    classes = len(splits.classes)
    target, given = make_target(config, classes, devices.dtype, keys.init, model), None
    if config.target_weights is not None:
        given = load_target_weights(config, target)
        target = with_weights(config.target, target, given, classes)
        console.print(f"weights of the target: {given.origin}", highlight=False, soft_wrap=True)
    by_sources = expected_by_sources(config)
    expected = expected_statistics(config, by_sources, given and given.statistics)
    chosen = statistics_of(config, splits.train, expected)
    seen = seen_by_source(chosen, by_sources[0])
    return Task(target, *chosen, devices.dtype, seen, devices.gathered)


def _transferred(
    config: Config,
    method: tlv_jax.Method | tlv_jax.Fit | None,
    sources: Sequence[importers.Pretrained],
    task: Task,
    splits: Splits,
    keys: Keys,
    console: Console,
) -> Transferred | None:
    """What the target gets of the sources; None if that is nothing."""
    if method is None:
        return None
    if isinstance(method, tlv_jax.Method):
        return transfer(method, keys.transfer, sources, task.target)
    statistics = Statistics(task.mean, task.std)
    images = first_images(splits.train, keys.order, config.batch_size, statistics, task.dtype)
    line = f"fit: {config.target} to {config.sources[0]}, by {len(images)} training images"
    console.print(line, highlight=False, soft_wrap=True)
    return fit(method, keys.transfer, sources[0], task, images)


def _tell_start(
    config: Config, task: Task, made: Transferred | None, folder: Path, console: Console
) -> None:
    """Prints and writes what was transferred, and notes what the run depends on beside it."""
    if is_first_process():
        note_machine(folder)
        write_normalization(folder, Statistics(task.mean, task.std))
    if made is not None:
        told = made.report if made.plan is None else made.plan
        console.print(str(told), highlight=False, soft_wrap=True)
        if is_first_process():
            write_transfer(folder, made.plan, made.report)
    elif not config.sees_images:
        line = "no transfer, crossover or distillation: a twin would be the same, so there is none"
        console.print(line, highlight=False, soft_wrap=True)
