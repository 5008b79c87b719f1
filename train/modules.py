"""Make a target of what it is named by: an architecture of the zoo, or a user's own module."""

import ast
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
from flax.errors import FlaxError

from importers.position_embeddings import check_image_size
from tlv_jax import models
from train.errors import ConfigError
from train.linen_target import linen_target
from train.nnx_target import nnx_target
from train.target import Target

__all__ = ["build_module", "parse_arguments", "target_of"]


def build_module(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    num_classes: int,
    image_size: int,
    dtype: Any,
    key: jax.Array,
) -> nn.Module | nnx.Module:
    """Builds the module that a target is named by.

    Args:
      name: an architecture such as `resnet18`, or `package.module:Name`: a Linen or NNX module of
        the user's own, or a function that returns one. It is called with those of `num_classes`,
        `image_size`, `dtype` and `rngs` that it takes.
      arguments: others to call it with.
      num_classes: size of the last layer.
      image_size: pixels a side of the images, for architectures that take one size only.
      dtype: of the computation.
      key: seeds the parameters of an NNX module. A Linen module has none yet.

    Raises:
      OptionError: for an unknown architecture, or one that cannot take images of that size.
      ConfigError: if there is no such module, or it cannot be built like that.
    """
    arguments = dict(arguments or {})
    if ":" not in name:
        if arguments:
            raise ConfigError(
                f"target={name!r}: target_args={arguments} are for modules of your own, "
                "package.module:Name."
            )
        model = models.create(name, num_classes=num_classes, dtype=dtype)
        if not hasattr(model, "image_size"):
            return model
        check_image_size(name, image_size)
        return model.clone(image_size=image_size)
    path, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"target={name!r}: cannot be imported ({error}). Give package.module:Name, and start "
            "in the folder that holds the package."
        ) from error
    try:
        offered = {"num_classes": num_classes, "image_size": image_size, "dtype": dtype}
        offered["rngs"] = nnx.Rngs(key)
        # Of a class: the metaclass of NNX hides its signature.
        called = found.__init__ if isinstance(found, type) else found
        taken = inspect.signature(called).parameters
        module = found(**{k: v for k, v in offered.items() if k in taken} | arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"target={name!r}: cannot be built ({error}). Give the arguments that it needs beside "
            "num_classes, image_size, dtype and rngs: --target-args NAME=VALUE, or --dst-args for "
            "tlv-jax transfer."
        ) from error
    if not isinstance(module, nn.Module | nnx.Module):
        raise ConfigError(
            f"target={name!r}: expected a module of flax.linen or flax.nnx, found {module!r}."
        )
    return module


def parse_arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads `width=0.5` as a Python literal, or as text where it is none.

    Raises:
      ConfigError: for one without a name.
    """
    parsed = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name.isidentifier() and equals):
            raise ConfigError(f"target_args: expected NAME=VALUE, got {assignment!r}.")
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed


def target_of(
    name: str, module: nn.Module | nnx.Module, key: jax.Array, images: jax.Array
) -> Target:
    """The target that a module is.

    Args:
      name: of the target, for messages.
      module: of either kind.
      key: initializes a Linen module; consumed.
      images: `[1, H, W, 3]` of any content.

    Raises:
      ConfigError: if the module cannot be called on the images alone.
    """
    try:
        if isinstance(module, nn.Module):
            return linen_target(module, key, images)
        return nnx_target(module, images)
    except (TypeError, ValueError, FlaxError) as error:
        raise ConfigError(
            f"target={name!r}: cannot be called on images of shape {images.shape} ({error})."
        ) from error
