"""The two networks of a run: the target as it is trained, and the source as it lends features."""

import flax.linen as nn
import flax.nnx as nnx
import jax

from tlv_jax import models
from train.config import Config
from train.errors import ConfigError
from train.modules import target_of
from train.target import Target, check_target

__all__ = ["checked_target", "features_only", "size_lent_at"]


def checked_target(
    config: Config, model: nn.Module | nnx.Module, key: jax.Array, images: jax.Array, classes: int
) -> Target:
    """The target, once it is known that it can be trained as the settings ask.

    Args:
      config: the settings.
      model: what the target is.
      key: initializes a Linen module; consumed.
      images: `[1, H, W, 3]` of any content.
      classes: number of classes.

    Raises:
      ConfigError: if the module does not map such images to logits, or no features can be lent to
        it as the settings ask.
    """
    if config.crossover_rate and isinstance(model, models.SqueezeNet):
        # Its head on averaged features is another function than the network that is evaluated.
        raise ConfigError(
            f"crossover_rate={config.crossover_rate} for target={config.target!r}: a SqueezeNet "
            "averages over places behind its last layer, so no features can be lent to it. Set "
            "crossover_rate=0."
        )
    target = target_of(config.target, model, key, images)
    if ":" in config.target:
        crossover = config.crossover_rate > 0
        check_target(config.target, target, images, classes, crossover=crossover)
    return target


def size_lent_at(config: Config) -> int | None:
    """The size of the images, if the source sees them and takes images of one size only."""
    fixed = hasattr(models.create(config.source), "image_size")
    return config.image_size if fixed and config.crossover_rate else None


def features_only(model: nn.Module) -> nn.Module:
    """The source as it lends features. A VGG's are the 512 globally pooled ones, as published."""
    return model.clone(pool_size=1) if isinstance(model, models.VGG) else model
