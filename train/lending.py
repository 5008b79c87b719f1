"""The source in training: what it lends and teaches, made once before the first step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from rich.console import Console

import importers
import tlv_jax
from train.adapter import draw_adapter, fit_projection, widths_to_adapt
from train.config import Config
from train.data import Splits
from train.distillation import distillation_of
from train.errors import ConfigError
from train.hints import choose_hints, draw_maps, paired_convolutions
from train.networks import features_only
from train.optimizer import crossover_rate
from train.probe import Linear, features_by_part, fit_probe
from train.recipe import Recipe
from train.support import Adapter, Lent, Support, make_lend
from train.target import Target

__all__ = ["Lending", "as_first_process_has_it", "lending_of"]


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


def lending_of(
    config: Config,
    recipe: Recipe,
    sources: Sequence[importers.Pretrained],
    target: Target,
    plan: tlv_jax.TransferPlan | None,
    splits: Splits,
    *,
    steps: int,
    dtype: jnp.dtype,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    console: Console,
) -> Lending | None:
    """Returns what the source of a run lends and teaches; None if it does neither.

    Args:
      config: the settings, resolved.
      recipe: of the run.
      sources: the pretrained networks, of which the first lends and teaches.
      target: the network to train.
      plan: of the transfer, which pairs layers; None if there is none.
      splits: the images, as NumPy arrays.
      steps: all steps.
      dtype: of the computation.
      optimizer: of an adapter, if one is trained.
      key: draws an adapter, consumed.
      console: is told of what is made.

    Raises:
      TLVError: if the source cannot take images of that size, or there are no activations to
        imitate.
    """
    teaching, lends = distillation_of(config.distill), config.crossover_rate > 0
    if teaching is None and not lends:
        return None
    source = sources[0]
    rate = crossover_rate(config.crossover_rate, steps, recipe)
    support = Support(features_only(source.model), rate, teaching)
    features = features_by_part(source, splits, dtype, config.batch_size)
    by_plan = config.distill.name == "plan"
    teacher = _teacher(features, splits, config, console) if teaching and not by_plan else None
    size = config.image_size
    assert size is not None  # resolved
    images = jnp.zeros((1, size, size, 3), dtype)
    widths = widths_to_adapt(recipe, source, target, images, console) if lends else None
    projection = adapter = None
    maps = ()
    if teaching and by_plan:
        assert plan is not None  # resolved
        hints = _hints(plan, source, target, images, console)
        teaching = teaching._replace(pairs=tuple(hints))
        support = support._replace(distillation=teaching, optimizer=optimizer)
        maps = draw_maps(jax.random.fold_in(key, 1), hints.values())
    if widths and recipe.crossover_adapter == "projection":
        projection = fit_projection(features("train"), widths.target)
    elif widths:
        support, adapter = support._replace(optimizer=optimizer), draw_adapter(key, widths)
    extra = Adapter(adapter, maps) if adapter or maps else None
    return Lending(support, Lent(source.variables, teacher, projection), extra)


def as_first_process_has_it(lending: Lending | None) -> Lending | None:
    """Returns, on all processes, what the first one computed. Waits for all of them."""
    if lending is None:
        return None
    computed = multihost_utils.broadcast_one_to_all(lending.lent[1:])
    return lending._replace(lent=Lent(lending.lent.variables, *computed))


def _hints(
    plan: tlv_jax.TransferPlan,
    source: importers.Pretrained,
    target: Target,
    images: jax.Array,
    console: Console,
) -> dict[tuple[str, str], tuple[int, int]]:
    """The pairs of layers by which the source teaches, with their channels."""
    watching = target.train_watched
    if watching is None:
        raise ConfigError(
            "distill=plan: the activations of an NNX module cannot be had, only those of a Linen "
            "module. Set distill=logits."
        )
    pairs = paired_convolutions(plan)
    params, state = target.split(target.network.params)
    key, paths = jax.random.key(0), [path for _, path in pairs]
    lend = make_lend(features_only(source.model), pairs)
    given: Any = jax.eval_shape(lend, source.variables, images)
    own: Any = jax.eval_shape(
        lambda images: watching(params, state, images, key, None, paths), images
    )
    hints = choose_hints(pairs, own[2], given[1])
    told = ", ".join(f"{mine} imitates {theirs}" for theirs, mine in hints)
    console.print(f"hints: {told}", highlight=False, soft_wrap=True)
    return hints


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
