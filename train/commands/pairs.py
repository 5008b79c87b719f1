"""The two networks of a command: with their weights, or only as shapes."""

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

import importers
import tlv_jax
from tlv_jax import models
from train.commands.settings import Pair, Start
from train.contents import classes_of
from train.errors import ConfigError
from train.modules import build_module, parse_arguments, target_of
from train.run_folder import is_run_folder
from train.target_weights import read_weights, with_weights

__all__ = ["check", "load_source", "load_target", "shapes_of"]

CLASSES, IMAGE_SIZE = 1000, 224  # of torchvision's networks


def check(pair: Pair) -> None:
    """Checks settings before anything is loaded.

    Raises:
      ConfigError: if one is out of its range, or does nothing beside the others.
    """
    if pair.image_size is not None and pair.image_size < 1:
        raise ConfigError(f"image_size={pair.image_size}, expected at least 1.")
    if isinstance(pair, Start) and pair.seed < 0:
        raise ConfigError(f"seed={pair.seed}, expected at least 0.")
    if pair.src_prefix is not None and pair.src_weights is None:
        raise ConfigError(
            f"src_prefix={pair.src_prefix!r} does nothing for published weights. Leave it out, or "
            "give a file with --src-weights."
        )
    if pair.dst_args and ":" not in pair.dst:
        raise ConfigError(
            f"dst_args={', '.join(pair.dst_args)} for dst={pair.dst!r}: expected a module of your "
            "own, MODULE:NAME. Leave dst_args out."
        )


def load_source(pair: Pair) -> importers.Pretrained:
    """Loads the source with its weights.

    Raises:
      TLVError: as `importers.load`.
    """
    return importers.load(pair.src, pair.src_weights, prefix=pair.src_prefix)


def load_target(pair: Pair, key: jax.Array) -> tlv_jax.Network:
    """Initializes the target, and gives it its own weights if a file or folder of them is named.

    Args:
      pair: the settings.
      key: of the initialization, consumed.

    Raises:
      TLVError: as `importers.load` and `read_weights`, or if a module cannot be built or traced.
    """
    weights = pair.dst_weights
    if weights is not None and ":" not in pair.dst and not weights.is_dir():
        return _from_file(pair)
    size, classes = pair.image_size or IMAGE_SIZE, _classes(pair)
    model = _build(pair, classes, size, key)
    target = target_of(pair.dst, model, key, jnp.zeros((1, size, size, 3)))
    if weights is None:
        return target.network
    given = read_weights(weights, is_nnx=isinstance(model, nnx.Module))
    return with_weights(pair.dst, target, given, classes).network


def shapes_of(pair: Pair) -> tuple[tlv_jax.Network, tlv_jax.Network]:
    """Traces both networks. Where a network of the zoo has no file, nothing is loaded or drawn.

    Raises:
      TLVError: as `load_source` and `load_target`.
    """
    if pair.src_weights is None:
        source = _shapes(models.create(pair.src), IMAGE_SIZE)
    else:
        source = load_source(pair).network
    key, size = jax.random.key(0), pair.image_size or IMAGE_SIZE
    if pair.dst_weights is not None or ":" in pair.dst:
        return source, load_target(pair, key)
    return source, _shapes(_build(pair, _classes(pair), size, key), size)


def _classes(pair: Pair) -> int:
    """How many are asked for, or else those of the run whose weights the target gets, or 1000."""
    if pair.num_classes is not None:
        return pair.num_classes
    if pair.dst_weights is not None and is_run_folder(pair.dst_weights):
        return classes_of(pair.dst_weights)
    return CLASSES


def _build(pair: Pair, classes: int, size: int, key: jax.Array) -> Any:
    return build_module(
        pair.dst,
        parse_arguments(pair.dst_args),
        num_classes=classes,
        image_size=size,
        dtype=jnp.float32,
        key=key,
    )


def _from_file(pair: Pair) -> tlv_jax.Network:
    # Only an architecture of one size has a size of its own to be loaded at.
    fixed = hasattr(models.create(pair.dst), "image_size")
    return importers.load(
        pair.dst,
        pair.dst_weights,
        num_classes=pair.num_classes,
        image_size=pair.image_size if fixed else None,
    ).network


def _shapes(model: Any, size: int) -> tlv_jax.Network:
    side = getattr(model, "image_size", size)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return tlv_jax.trace(model.apply, models.abstract_variables(model), images)
