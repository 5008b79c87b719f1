"""What the trainings of a comparison share: images, networks and compiled steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import importers
from train.adapter import Widths, fit_projection, widths_to_adapt
from train.compare.settings import Settings, distills, lends
from train.data import PARTS, Splits, train_order
from train.devices import dtype_of
from train.distillation import Distillation
from train.networks import (
    blank_image,
    features_only,
    keys_of,
    load_sources,
    make_target,
    source_initializer,
)
from train.normalization import seen_by_source, statistics_of
from train.optimizer import check_patterns, crossover_rate, optimizer_of
from train.probe import Linear, Probe, features_by_part, fit_probe, pixels_by_part
from train.recipe import Recipe, recipe_of, without_patterns
from train.statistics import Statistics
from train.step import Task, make_eval_step, make_train_step
from train.support import Support
from train.target import Target

__all__ = ["Programs", "Study", "over_trainings", "prepare", "programs_of"]


class Programs(NamedTuple):
    """Compiled steps of several trainings at once, which are the first axis `S`.

    Attributes:
      step: `(state, rates, keys, rows, images, support_variables) -> (state, tally)`, with `rows`
        `[S, B]` and `rates` `[S]`, the highest learning rates.
      evaluate: `(params, model_state, rows, real, images) -> tally`, with `rows` `[B]`.
    """

    step: Callable[..., Any]
    evaluate: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the trainings share.

    Attributes:
      settings: resolved.
      splits: the images, on the device.
      dtype: of the computation.
      source: the pretrained network.
      draw_source: its variables with the architecture's own initialization, by key.
      recipe: of all trainings.
      frozen: paths of the parameters that the recipe freezes.
      optimizer: of the recipe, by the learning rate.
      adapter_optimizer: of what adapts lent features, if that is trained.
      widths: of the features that are adapted; None if they are lent as they are.
      target: the target with its own initialization, by seed.
      statistics: by which images are normalized, by those that the weights expect.
      programs: by these statistics, whether the source lends features, and whether it teaches.
      inputs: of each of `CLASSIFIERS`, by the part of the images; each is computed once.
      projection: of the features that are lent, fitted when it is first asked for; None if they are
        not projected.
      classifier: by the name of the start, fitted when it is first asked for.
    """

    settings: Settings
    splits: Splits
    dtype: jnp.dtype
    source: importers.Pretrained
    draw_source: Callable[[jax.Array], Any]
    recipe: Recipe
    frozen: Sequence[str]
    optimizer: Callable[[Any], optax.GradientTransformation]
    adapter_optimizer: Callable[[Any], optax.GradientTransformation]
    widths: Widths | None
    target: Callable[[int], Target]
    statistics: Callable[[Statistics], Statistics]
    programs: Callable[[Statistics, bool, bool], Programs]
    inputs: Mapping[str, Callable[[str], np.ndarray]]
    projection: Callable[[], Linear | None]
    classifier: Callable[[str], Probe]


def prepare(settings: Settings, splits: Splits, console: Console) -> Study:
    """Loads the source, puts the images on the device, and checks the target.

    Args:
      settings: resolved.
      splits: the images.
      console: is told how lent features are adapted, if they are.

    Raises:
      TLVError: if the source cannot be had, the target cannot be trained by the recipe, or there
        are too few images.
    """
    assert settings.epochs is not None  # resolved
    dtype, recipe = dtype_of(settings), recipe_of(settings)
    crossover = any(lends(name) for name in settings.methods)
    # The source sees the images in crossover, in distillation, and in a probe.
    seen = crossover or any(name == "probe" or distills(name) for name in settings.methods)
    sees = dataclasses.replace(settings, crossover_rate=float(seen))
    (source,) = load_sources(sees, dtype)  # resolved
    own = settings if crossover else dataclasses.replace(settings, crossover_rate=0.0)
    classes = len(splits.classes)
    target = functools.cache(lambda seed: make_target(own, classes, dtype, keys_of(seed).init))
    first = target(settings.seed)
    order = train_order(keys_of(settings.seed).order, 1, len(splits.train), settings.batch_size)
    steps = len(order) * settings.epochs
    lender = features_only(source.model)
    teaching = Distillation(settings.distill.weight, settings.distill.temperature)
    expected = Statistics(source.preprocess.mean, source.preprocess.std)

    def optimizer(rate: Any) -> optax.GradientTransformation:
        return optimizer_of(settings, recipe, rate, len(order))

    def adapter_optimizer(rate: Any) -> optax.GradientTransformation:
        return optimizer_of(settings, without_patterns(recipe), rate, len(order))

    def programs(statistics: Statistics, lent: bool, taught: bool) -> Programs:
        seen = seen_by_source(statistics, expected)
        task = Task(first, statistics.mean, statistics.std, dtype, seen)
        rate = crossover_rate(settings.crossover_rate, steps, recipe) if lent else 0.0
        support = Support(lender, rate, teaching if taught else None) if lent or taught else None
        return programs_of(task, optimizer, adapter_optimizer, support, recipe)

    images = blank_image(settings, dtype)
    features = features_by_part(source, splits, dtype, settings.batch_size)
    inputs = {"probe": features, "pixels": pixels_by_part(splits, settings.batch_size)}

    widths = widths_to_adapt(recipe, source, first, images, console) if crossover else None

    def projection() -> Linear | None:
        if widths is None or recipe.crossover_adapter != "projection":
            return None
        return fit_projection(features("train"), widths.target)

    def classifier(start: str) -> Probe:
        seen = inputs[start]
        return fit_probe(seen("train"), seen("validation"), splits, settings.best_by)

    return Study(
        settings=settings,
        splits=_on_device(splits),
        dtype=dtype,
        source=source,
        draw_source=source_initializer(source),
        recipe=recipe,
        frozen=check_patterns(recipe, first.split(first.network.params)[0]),
        optimizer=optimizer,
        adapter_optimizer=adapter_optimizer,
        widths=widths,
        target=target,
        statistics=functools.cache(functools.partial(statistics_of, settings, splits.train)),
        programs=functools.cache(programs),
        inputs=inputs,
        projection=functools.cache(projection),
        classifier=functools.cache(classifier),
    )


def _on_device(splits: Splits) -> Splits:
    parts = {part: jax.device_put(getattr(splits, part)) for part in PARTS}
    return dataclasses.replace(splits, **parts)


def programs_of(
    task: Task,
    optimizer: Callable[[Any], optax.GradientTransformation],
    adapter_optimizer: Callable[[Any], optax.GradientTransformation],
    support: Support | None,
    recipe: Recipe,
) -> Programs:
    """Compiles one step for all learning rates, by which optimizers are made."""

    def step(state: Any, rate: jax.Array, key: jax.Array, *inputs: Any) -> Any:
        lender = support and support._replace(optimizer=adapter_optimizer(rate))
        return make_train_step(task, optimizer(rate), lender, recipe)(state, key, *inputs)

    steps_at_once = over_trainings(step, (0, 0, 0, 0, None, None))
    evaluate = over_trainings(make_eval_step(task), (0, 0, None, None, None))
    return Programs(jax.jit(steps_at_once, donate_argnums=0), jax.jit(evaluate))


def over_trainings(fn: Callable[..., Any], axes: Sequence[int | None]) -> Callable[..., Any]:
    """`jax.vmap`, but a single training calls the function itself.

    On a CPU a convolution with an axis of kernels is slower, even if its length is 1.

    Args:
      fn: to map; the first argument has the axis.
      axes: of each argument, 0 or None.
    """

    def mapped(*args: Any) -> Any:
        if len(jax.tree.leaves(args[0])[0]) > 1:
            return jax.vmap(fn, tuple(axes))(*args)
        alone = [
            arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], fn(*alone))

    return mapped
