"""The two networks of a run: the target as it is trained, and the source as it lends features."""

from typing import NamedTuple

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp

import importers
from tlv_jax import models
from train.config import Config
from train.errors import ConfigError
from train.modules import build_module, parse_arguments, target_of
from train.target import Target, check_target

__all__ = ["Keys", "features_only", "keys_of", "load_source", "make_target", "size_lent_at"]


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


def load_source(config: Config, dtype: jnp.dtype) -> importers.Pretrained:
    """Loads the pretrained network that the settings name, for the images that it sees.

    Args:
      config: the settings, resolved.
      dtype: of the computation.

    Raises:
      TLVError: as `importers.load`.
    """
    return importers.load(
        config.source,
        config.source_weights,
        image_size=size_lent_at(config),
        dtype=dtype,
        prefix=config.source_prefix,
    )


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
    images = jnp.zeros((1, size, size, 3), dtype)
    target = target_of(config.target, model, key, images)
    if ":" in config.target:
        crossover = config.crossover_rate > 0
        check_target(config.target, target, images, classes, crossover=crossover)
    return target


def size_lent_at(config: Config) -> int | None:
    """The size of the images, if the source sees them and takes images of one size only."""
    fixed = hasattr(models.create(config.source), "image_size")
    sees = config.crossover_rate or config.distill.name != "none"
    return config.image_size if fixed and sees else None


def features_only(model: nn.Module) -> nn.Module:
    """The source as it lends features. A VGG's are the 512 globally pooled ones, as published."""
    return model.clone(pool_size=1) if isinstance(model, models.VGG) else model
