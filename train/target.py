"""The network to train: an architecture of the zoo, or a user's own Flax module."""

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
import jax
from flax.errors import FlaxError

from importers.position_embeddings import check_image_size
from tlv_jax import models
from train.errors import ConfigError

__all__ = ["create_target", "initialize"]

METHODS_WANTED = (
    "A target needs the methods features(images, *, train), pooled features [B, D], and "
    "head(features, *, train), the logits [B, N], beside __call__(images, *, train); see "
    "examples/odd_mobilenet.py."
)


def create_target(
    name: str, *, num_classes: int, dtype: Any, image_size: int | None = None
) -> nn.Module:
    """Builds the target; draws no weights.

    Args:
      name: an architecture such as `resnet18`, or `package.module:Class`, a Linen module of the
        user's own. It is built without arguments, but for `num_classes` and `dtype` if it has
        fields of these names.
      num_classes: size of the last layer.
      dtype: of the computation.
      image_size: pixels a side of the images, for an architecture that takes one size only; by
        default its own.

    Raises:
      OptionError: for an unknown architecture, or one that cannot take images of that size.
      ConfigError: if there is no such module, or it cannot be built like that.
    """
    if ":" not in name:
        model = models.create(name, num_classes=num_classes, dtype=dtype)
        if image_size is None or not hasattr(model, "image_size"):
            return model
        check_image_size(name, image_size)
        return model.clone(image_size=image_size)
    path, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"target={name!r}: cannot be imported ({error}). Give package.module:Class, and start "
            "`python -m train` in the folder that holds the package."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"target={name!r}: expected a flax.linen.Module, found {found!r}.")
    for method in ("features", "head"):
        if not callable(getattr(found, method, None)):
            raise ConfigError(f"target={name!r}: has no method {method}. {METHODS_WANTED}")
    fields = {field.name for field in dataclasses.fields(found)}
    offered = {"num_classes": num_classes, "dtype": dtype}
    try:
        return found(**{key: value for key, value in offered.items() if key in fields})
    except TypeError as error:
        raise ConfigError(
            f"target={name!r}: cannot be built ({error}). Give every field but num_classes and "
            "dtype a default."
        ) from error


def initialize(
    name: str, model: nn.Module, key: jax.Array, images: jax.Array, *, num_classes: int
) -> dict[str, Any]:
    """Draws the variables of a target, and checks that it can be trained.

    Args:
      name: of the target, for messages.
      model: from `create_target`.
      key: consumed.
      images: `[B, H, W, 3]` of any content.
      num_classes: of the data set.

    Returns:
      `params`, and `batch_stats` if it has any.

    Raises:
      ConfigError: if it keeps other variables, or its methods do not fit together.
    """
    variables = jax.jit(model.init)(key, images)
    if others := sorted(variables.keys() - {"params", "batch_stats"}):
        raise ConfigError(
            f"target={name!r}: has variables of the kinds {others}; only params and batch_stats "
            "can be trained."
        )
    if ":" in name:
        _check_methods(name, model, variables, images, num_classes)
    return variables


def _check_methods(
    name: str, model: nn.Module, variables: Any, images: jax.Array, num_classes: int
) -> None:
    """Checks a user's own module by shapes; the zoo's are known to be right.

    Raises:
      ConfigError: if a method is not called, or does not answer, as the zoo's do.
    """
    apply: Any = model.apply  # its type tells what `mutable` decides

    def run(variables: Any, images: Any) -> tuple[Any, Any, Any]:
        options: Any = {"train": True, "mutable": ["batch_stats"]}
        options["rngs"] = {"dropout": jax.random.key(0)}
        features, _ = apply(variables, images, method="features", **options)
        logits, _ = apply(variables, features, method="head", **options)
        plain, _ = apply(variables, images, **options)
        return features, logits, plain

    try:
        features, logits, plain = jax.eval_shape(run, variables, images)
    except (TypeError, ValueError, FlaxError) as error:
        raise ConfigError(f"target={name!r}: {error} {METHODS_WANTED}") from error
    expected = (len(images), num_classes)
    shapes = [getattr(answer, "shape", None) for answer in (features, logits, plain)]
    if shapes[0] is None or len(shapes[0]) != 2 or shapes[1:] != [expected, expected]:
        raise ConfigError(
            f"target={name!r}: of {len(images)} image(s) and {num_classes} classes its features "
            f"have the shape {shapes[0]}, what head gives {shapes[1]}, and what __call__ gives "
            f"{shapes[2]}; expected [B, D], [B, {num_classes}] and [B, {num_classes}]. Where the "
            "last is wrong, add a field num_classes, which is set to the number of classes."
        )
