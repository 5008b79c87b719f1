"""Transfer, train the target and its twin without transfer, and compare them."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import importers
import tlv_jax
from train.config import Config, resolve
from train.contents import load_on_all_hosts, show_contents
from train.data import Splits, train_order
from train.devices import (
    Devices,
    ask_first,
    find_devices,
    is_first_process,
    join_hosts,
    place_images,
)
from train.distillation import distillation_of
from train.errors import name_some
from train.interruptions import watch
from train.lending import lending_of
from train.method import method_of
from train.modules import parse_arguments
from train.networks import Keys, keys_of, load_source, make_target
from train.normalization import seen_by_source, statistics_of
from train.optimizer import check_patterns, make_optimizer
from train.recipe import Recipe, recipe_of, without_patterns
from train.results import RunResult, result_table, write_results, write_transfer
from train.run_folder import open_run_folder
from train.statistics import Statistics
from train.step import Task, initial_state, make_eval_step, with_adapter
from train.target import Target
from train.training import Setup, train

__all__ = ["Result", "run"]


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
        finite, or a run folder that is in use, damaged or full.
      Stopped: a KeyboardInterrupt, after SIGTERM or Ctrl-C, once the step that ran is saved. A
        second signal acts at once.

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
    distillation_of(config.distill)
    parse_arguments(config.target_args)  # refused before anything is loaded
    join_hosts(config.hosts)
    console = console or Console(quiet=not is_first_process())
    devices = find_devices(config)
    pretrained = load_source(config, devices.dtype)
    splits = load_on_all_hosts(config)
    show_contents(splits, console)
    keys = keys_of(config.seed)
    target = make_target(config, len(splits.classes), devices.dtype, keys.init, model)
    if frozen := check_patterns(recipe, target.split(target.network.params)[0]):
        console.print(f"frozen: {name_some(frozen)}", highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as held:
        folder = Path(ask_first(lambda: str(held.enter_context(open_run_folder(config, splits)))))
        plan, transferred, report = _transfer(
            method, keys.transfer, pretrained.network, target.network, folder
        )
        console.print(str(plan), highlight=False, soft_wrap=True)
        setup = _prepare(config, recipe, devices, target, pretrained, splits, keys)
        lending = lending_of(
            *(config, recipe, pretrained, target, plan, splits),
            steps=setup.steps,
            dtype=devices.dtype,
            optimizer=setup.adapter_optimizer,
            key=jax.random.fold_in(keys.init, 1),
            console=console,
        )
        starts = [("transferred", transferred, lending)]
        if config.baseline:
            starts.append(("he", target.network.params, None))
        watched = held.enter_context(watch(config.save_every_steps, config.save_every_minutes))
        bar = held.enter_context(_progress_bar(console))
        runs = []
        for name, start, lender in starts:
            state = initial_state(*target.split(start), setup.optimizer, recipe)
            support, lent = (lender.support, lender.lent) if lender else (None, None)
            if lender and lender.adapter:
                state = with_adapter(state, lender.adapter, setup.adapter_optimizer)
            runs.append(train(name, setup, state, support, lent, folder, watched, bar))
        if is_first_process():
            write_results(folder, runs)
    console.print(result_table(runs, f"{config.target} on {config.dataset}, test images"))
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
    keys: Keys,
) -> Setup:
    """Puts the images on the devices and builds what both trainings use."""
    source = Statistics(pretrained.preprocess.mean, pretrained.preprocess.std)
    chosen = statistics_of(config, splits.train, source)
    task = Task(target, *chosen, devices.dtype, seen_by_source(chosen, source))
    steps = len(train_order(keys.order, 0, len(splits.train), config.batch_size))
    assert config.epochs is not None  # resolved
    all_steps, warmup = steps * config.epochs, int(steps * recipe.warmup_epochs)
    rate, decay = config.learning_rate, config.weight_decay
    return Setup(
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
        adapter_optimizer=make_optimizer(
            rate, decay, all_steps, without_patterns(recipe), warmup=warmup
        ),
        evaluate=jax.jit(make_eval_step(task)),
        order_key=keys.order,
        step_key=keys.step,
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
