"""The source in training: what it lends and teaches, made once before the first step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import importers
import tlv_jax
from train.adapter import draw_adapter, fit_projection, widths_to_adapt
from train.config import Config
from train.data import Splits
from train.devices import of_first_process
from train.distillation import distillation_of
from train.errors import ConfigError
from train.hints import choose_hints, draw_maps, paired_convolutions
from train.networks import blank_image, features_only
from train.optimizer import crossover_rate
from train.probe import Linear, features_by_part, fit_probe
from train.setup import Setup
from train.support import Adapter, Lent, Support, make_lend
from train.target import Target

__all__ = ["Hints", "Lending", "as_first_process_has_it", "hints_of", "lending_of"]

Hints = Mapping[tuple[str, str], tuple[int, int]]
"""Pairs of paths of layers `(source, target)`, with their channels `(C, C')`: of the target's
layer, and of the source's."""


class Lending(NamedTuple):
    """The source as a training gets it.

    Attributes:
      support: lends and teaches.
      lent: its variables, and what was computed of them.
      adapter: of the state before the first step; None if there is none to train.
    """

    support: Support
    lent: Lent
    adapter: Adapter | None


def hints_of(
    config: Config,
    sources: Sequence[importers.Pretrained],
    target: Target,
    plan: tlv_jax.TransferPlan | None,
) -> Hints:
    """Chooses by shapes alone the pairs of layers by which the source teaches.

    Args:
      config: the settings, resolved.
      sources: the pretrained networks; there is one if it gives hints.
      target: the network to train.
      plan: of the transfer, which pairs layers; None if there is none.

    Returns:
      The pairs; none unless the settings ask for hints.

    Raises:
      ConfigError: if there are no activations to imitate.
    """
    if config.distill.name != "plan":
        return {}
    assert plan is not None  # resolved
    watching = target.train_watched
    if watching is None:
        raise ConfigError(
            "distill=plan: the activations of an NNX module cannot be had, only those of a Linen "
            "module. Set distill=logits."
        )
    source, pairs = sources[0], paired_convolutions(plan)
    params, state = target.split(target.network.params)
    key, paths = jax.random.key(0), [path for _, path in pairs]
    images = blank_image(config, jnp.dtype("float32"))
    lend = make_lend(features_only(source.model), pairs)
    given: Any = jax.eval_shape(lend, source.variables, images)
    own: Any = jax.eval_shape(
        lambda images: watching(params, state, images, key, None, paths), images
    )
    return choose_hints(pairs, own[2], given[1])


def lending_of(
    setup: Setup,
    sources: Sequence[importers.Pretrained],
    hints: Hints,
    splits: Splits,
    key: jax.Array,
    console: Console,
) -> Lending | None:
    """Returns what the source of a run lends and teaches; None if it does neither.

    Args:
      setup: what all trainings share.
      sources: the pretrained networks, of which the first lends and teaches.
      hints: from `hints_of`.
      splits: the images, as NumPy arrays or files.
      key: draws an adapter, consumed.
      console: is told of what is made.

    Raises:
      DataError: if a picture cannot be read, though it could at the start.
    """
    config, recipe, dtype = setup.config, setup.recipe, setup.devices.dtype
    if not config.sees_images:
        return None
    source, teaching = sources[0], distillation_of(config.distill)
    features = features_by_part(source, splits, dtype, config.batch_size)
    teacher = projection = layer = widths = None
    if hints and teaching:
        _tell_hints(hints, console)
        teaching = teaching._replace(pairs=tuple(hints))
    elif teaching:
        teacher = _teacher(features, splits, config, console)
    if config.crossover_rate:
        images = blank_image(config, dtype)
        widths = widths_to_adapt(recipe, source, setup.task.target, images, console)
    if widths and recipe.crossover_adapter == "projection":
        projection = fit_projection(features("train"), widths.target)
    elif widths:
        layer = draw_adapter(key, widths)
    maps = draw_maps(jax.random.fold_in(key, 1), hints.values())
    adapter = Adapter(layer, maps) if layer or maps else None
    rate = crossover_rate(config.crossover_rate, setup.steps, recipe)
    support = Support(features_only(source.model), rate, teaching, setup.adapter_optimizer)
    return Lending(support, Lent(source.variables, teacher, projection), adapter)


def as_first_process_has_it(lending: Lending | None) -> Lending | None:
    """Returns, on all processes, what the first one computed. Waits for all of them."""
    if lending is None:
        return None
    computed = of_first_process(lending.lent[1:])
    return lending._replace(lent=Lent(lending.lent.variables, *computed))


def _tell_hints(hints: Hints, console: Console) -> None:
    told = ", ".join(f"{own} imitates {given}" for given, own in hints)
    console.print(f"hints: {told}", highlight=False, soft_wrap=True)


def _teacher(
    features: Callable[[str], np.ndarray], splits: Splits, config: Config, console: Console
) -> Linear:
    probe = fit_probe(features("train"), features("validation"), splits, config.best_by)
    metric = config.best_by.replace("_", " ")
    console.print(
        f"teacher: a linear classifier on the source's features, {metric} {probe.score:.3f} on "
        f"the validation images, weight penalty {probe.penalty:g}",
        highlight=False,
        soft_wrap=True,
    )
    return probe.linear
