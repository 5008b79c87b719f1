"""The networks of a run: the target as it is trained, and the sources, of which one may lend."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp

import importers
from importers.weights import choose
from tlv_jax import models
from train.config import Config
from train.errors import ConfigError
from train.modules import build_module, parse_arguments, target_of
from train.statistics import Statistics
from train.target import Target, check_target

__all__ = [
    "Keys",
    "blank_image",
    "expected_by_sources",
    "features_only",
    "fixed_size",
    "keys_of",
    "load_sources",
    "make_target",
    "size_lent_at",
    "source_initializer",
]


class Keys(NamedTuple):
    """The random keys of one seed: for what each is drawn from."""

    init: jax.Array
    transfer: jax.Array
    order: jax.Array
    step: jax.Array


def keys_of(seed: int) -> Keys:
    """Derives the keys of a seed."""
    init, transfer, training = jax.random.split(jax.random.key(seed), 3)
    return Keys(init, transfer, *jax.random.split(training))


def load_sources(config: Config, dtype: jnp.dtype) -> tuple[importers.Pretrained, ...]:
    """Loads the pretrained networks that the settings name, the first for the images that it sees.

    Args:
      config: the settings, resolved.
      dtype: of the computation.

    Returns:
      All of them; none if no source gives anything.

    Raises:
      TLVError: as `importers.load`.
    """
    if not config.uses_source:
        return ()
    count = len(config.sources)
    weights = _one_each(config.source_weights, count)
    prefixes = _one_each(config.source_prefix, count)
    sizes = (size_lent_at(config), *[None] * (count - 1))
    return tuple(
        importers.load(name, file, image_size=size, dtype=dtype, prefix=prefix or None)
        for name, file, prefix, size in zip(config.sources, weights, prefixes, sizes, strict=True)
    )


def expected_by_sources(config: Config) -> tuple[Statistics, ...]:
    """By which mean and deviation the images of each source are normalized; loads no weights."""
    files = _one_each(config.source_weights, len(config.sources))
    chosen = [
        choose(name, file=None if file is None else Path(file).name).preprocess
        for name, file in zip(config.sources, files, strict=True)
    ]
    return tuple(Statistics(preprocess.mean, preprocess.std) for preprocess in chosen)


def _one_each(given: Any, count: int) -> Sequence[Any]:
    """One value for each source, of a setting that may be left out."""
    return given if isinstance(given, tuple) else (given,) * count


def source_initializer(source: importers.Pretrained) -> Callable[[jax.Array], Any]:
    """Returns what draws variables of a source's architecture by its own initialization, by key."""
    side = getattr(source.model, "image_size", source.preprocess.crop)
    initialize = jax.jit(source.model.init)

    def draw(key: jax.Array) -> Any:
        variables = initialize(key, jnp.zeros((1, side, side, 3)))
        return {name: variables[name] for name in source.variables}

    return draw


def make_target(
    config: Config,
    classes: int,
    dtype: jnp.dtype,
    key: jax.Array,
    model: nn.Module | nnx.Module | None = None,
) -> Target:
    """The target, once it is known that it can be trained as the settings ask.

    Args:
      config: the settings, resolved.
      classes: number of classes.
      dtype: of the computation.
      key: initializes it.
      model: in place of what the settings name.

    Raises:
      TLVError: if the module cannot be built, does not map such images to logits, or no features
        can be lent to it as the settings ask.
    """
    size = config.image_size
    assert size is not None  # resolved
    if model is None:
        model = build_module(
            config.target,
            parse_arguments(config.target_args),
            num_classes=classes,
            image_size=size,
            dtype=dtype,
            key=key,
        )
    if config.crossover_rate and isinstance(model, models.SqueezeNet):
        # Its head on averaged features is another function than the network that is evaluated.
        raise ConfigError(
            f"crossover_rate={config.crossover_rate} for target={config.target!r}: a SqueezeNet "
            "averages over places behind its last layer, so no features can be lent to it. Set "
            "crossover_rate=0."
        )
    images = blank_image(config, dtype)
    target = target_of(config.target, model, key, images)
    if ":" in config.target:
        crossover = config.crossover_rate > 0
        check_target(config.target, target, images, classes, crossover=crossover)
    return target


def blank_image(config: Config, dtype: jnp.dtype) -> jax.Array:
    """Returns a black image of the size that the settings ask for, `[1, H, W, 3]`."""
    assert config.image_size is not None  # resolved
    return jnp.zeros((1, config.image_size, config.image_size, 3), dtype)


def size_lent_at(config: Config) -> int | None:
    """The size of the images, if the first source sees them and takes one size only."""
    return fixed_size(config.sources[0], config) if config.sees_images else None


def fixed_size(name: str, config: Config) -> int | None:
    """Returns the size of the images for an architecture that takes one size only, else None."""
    return config.image_size if hasattr(models.create(name), "image_size") else None


def features_only(model: nn.Module) -> nn.Module:
    """The source as it lends features. A VGG's are the 512 globally pooled ones, as published."""
    return model.clone(pool_size=1) if isinstance(model, models.VGG) else model
