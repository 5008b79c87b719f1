"""What a fit takes: the images that a training sees first, and the source as it sees them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import importers
import tlv_jax
from tlv_jax import models
from train.augment import normalize
from train.batches import pixels_of
from train.data import Images, train_order
from train.errors import ConfigError
from train.statistics import Statistics

__all__ = ["check_source", "first_images", "first_rows", "source_of_fit"]

FIRST = 256


def first_rows(images: Images, key: jax.Array, batch_size: int, count: int) -> np.ndarray:
    """Returns the numbers of the images that a training sees first, up to `count`.

    Args:
      images: of the training.
      key: draws their order.
      batch_size: of the training.
      count: of images.

    Raises:
      DataError: if there are fewer images than a batch has.
    """
    # The files of a folder are in the order of their classes.
    return train_order(key, 1, len(images), batch_size).reshape(-1)[:count]


def first_images(
    images: Images, key: jax.Array, batch_size: int, statistics: Statistics, dtype: jnp.dtype
) -> jax.Array:
    """Returns the images that a training sees first, up to 256, without augmentation.

    Args:
      images: of the training.
      key: draws the order of the images.
      batch_size: of the training.
      statistics: by which images are normalized.
      dtype: of the computation.

    Returns:
      Normalized images `[N, H, W, 3]`.

    Raises:
      DataError: if there are fewer images than a batch has, or one cannot be read any more.
    """
    pixels: Any = pixels_of(images[first_rows(images, key, batch_size, FIRST)])
    if not hasattr(pixels, "shape"):  # blocks that are read from files
        pixels = np.concatenate(list(pixels))
    return normalize(pixels, statistics.mean, statistics.std, dtype)


def check_source(name: str) -> None:
    """Checks that a target can be fitted to a source of this name.

    Raises:
      ConfigError: if the source takes images of one size only.
    """
    if hasattr(models.create(name), "image_size"):
        raise ConfigError(
            f"source={name!r} takes images of one size only, and a fit shows enlarged ones to it. "
            "Give a convolutional source, or another method than fit."
        )


def source_of_fit(
    source: importers.Pretrained, seen: Callable[[jax.Array], jax.Array]
) -> tlv_jax.Network:
    """Returns the source as a network that takes the target's images.

    Args:
      source: the pretrained network.
      seen: turns images normalized for the target into those that the source expects.
    """
    network = source.network
    fn: Any = network.fn
    return dataclasses.replace(network, fn=lambda params, images: fn(params, seen(images)))
