"""How a network is trained: the published recipe, a modern one, and changes to either."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from train.config import Config, RecipeOptions
from train.errors import ConfigError

__all__ = ["MODERN", "PUBLISHED", "Recipe", "recipe_of", "without_patterns"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All choices of a training but its learning rate, weight decay and length.

    The defaults are the published settings.

    Attributes:
      optimizer: `adamw`, or `sgd` with momentum.
      momentum: of SGD.
      nesterov: whether SGD looks ahead, as Nesterov's does.
      schedule: `step`, times 0.1 at 60% and again at 80% of all steps, or `cosine`, down to 0.
      warmup_epochs: in which the learning rate rises linearly.
      clip_norm: largest global norm of the gradients; 0 does not clip.
      decay_all: whether norms and biases decay too.
      label_smoothing: share of each label that is spread evenly over all classes.
      accumulate: parts of a batch whose gradients are averaged.
      ema: decay of the moving average of the weights; 0 keeps none.
      freeze: regular expressions; parameters in whose paths one is found are not trained.
      rates: regular expressions, each with a factor of the learning rate.
      crop: `shift` pads by 4 pixels, `resized` resizes a box of the image, `none` does not crop.
      crop_area: smallest share of the image that such a box has.
      flip: probability that an image is mirrored.
      augment_strength: of two random changes of an image's colours or geometry, from 0 to 10; 0
        makes none.
      mixup: both parameters of the beta distribution of an image's share; 0 does not blend.
      cutmix: the same of its share of pixels; 0 does not cut.
      crossover_schedule: of the rate, `constant`, or `linear` down to 0 at the end.
      crossover_mask: features to replace are drawn for each `example`, or once for a `batch`. The
        published code does the latter, as `tlv_jax.crossover` says.
      crossover_adapter: where the widths differ, `published` lends the first features,
        `projection` principal components, `learned` what a linear layer makes of the source's.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["step", "cosine"] = "step"
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    decay_all: bool = True
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    crop: Literal["shift", "resized", "none"] = "shift"
    crop_area: float = 0.08
    flip: float = 0.5
    augment_strength: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crossover_schedule: Literal["constant", "linear"] = "constant"
    crossover_mask: Literal["example", "batch"] = "example"
    crossover_adapter: Literal["published", "projection", "learned"] = "published"


PUBLISHED = Recipe()
MODERN = Recipe(
    schedule="cosine",
    warmup_epochs=1.0,
    decay_all=False,
    label_smoothing=0.1,
    ema=0.999,
    crop="resized",
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({"published": PUBLISHED, "modern": MODERN})
# What each number may be.
RANGES: Mapping[str, tuple[str, Callable[[float], bool]]] = MappingProxyType(
    {
        "momentum": ("at least 0 and below 1", lambda value: 0 <= value < 1),
        "warmup_epochs": ("at least 0", lambda value: 0 <= value < math.inf),
        "clip_norm": ("at least 0", lambda value: 0 <= value < math.inf),
        "label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
        "accumulate": ("at least 1", lambda value: value >= 1),
        "ema": ("at least 0 and below 1", lambda value: 0 <= value < 1),
        "crop_area": ("above 0 and at most 1", lambda value: 0 < value <= 1),
        "flip": ("a probability", lambda value: 0 <= value <= 1),
        "augment_strength": ("from 0 to 10", lambda value: 0 <= value <= 10),
        "mixup": ("at least 0", lambda value: 0 <= value < math.inf),
        "cutmix": ("at least 0", lambda value: 0 <= value < math.inf),
    }
)
# What does something only beside another choice.
NEEDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "momentum": ("optimizer", "sgd"),
        "nesterov": ("optimizer", "sgd"),
        "crop_area": ("crop", "resized"),
    }
)


def recipe_of(config: Config) -> Recipe:
    """The recipe that is named, changed where the options say so.

    Args:
      config: resolved.

    Raises:
      ConfigError: for a number out of range, or a setting that does nothing beside the others.
    """
    options = config.recipe
    given = _given(options)
    if options.rates is not None:
        given["rates"] = tuple(map(_rate, options.rates))
    recipe = dataclasses.replace(RECIPES[options.name], **given)
    _check_numbers(recipe)
    _check_used(recipe, given)
    _check_crossover(given, config)
    _check_patterns(recipe)
    _check_sizes(recipe, config)
    return recipe


def without_patterns(recipe: Recipe) -> Recipe:
    """The same recipe for parameters that are not the target's, which no pattern is meant for."""
    return dataclasses.replace(recipe, freeze=(), rates=())


def _given(options: RecipeOptions) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    return {name: value for name, value in values.items() if value is not None}


def _rate(text: str) -> tuple[str, float]:
    """Reads `PATTERN=FACTOR`."""
    pattern, _, factor = text.rpartition("=")
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not pattern or not 0 < number < math.inf:
        raise ConfigError(
            f"recipe.rates={text!r}, expected PATTERN=FACTOR with a positive factor, for example "
            "classifier=10."
        )
    return pattern, number


def _check_patterns(recipe: Recipe) -> None:
    for pattern in (*recipe.freeze, *(pattern for pattern, _ in recipe.rates)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}.") from error


def _check_numbers(recipe: Recipe) -> None:
    for name, (expected, fits) in RANGES.items():
        value = getattr(recipe, name)
        if not fits(value):
            raise ConfigError(f"recipe.{name}={value}, expected {expected}.")


def _check_used(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Refuses what was given and does nothing."""
    for name, (other, needed) in NEEDS.items():
        chosen = getattr(recipe, other)
        if name in given and chosen != needed:
            raise ConfigError(
                f"recipe.{name}={given[name]} does nothing for recipe.{other}={chosen}. Set "
                f"recipe.{other}={needed}, or leave it out."
            )


def _check_crossover(given: Mapping[str, Any], config: Config) -> None:
    for name in ("crossover_schedule", "crossover_mask", "crossover_adapter"):
        if name in given and not config.crossover_rate:
            raise ConfigError(
                f"recipe.{name}={given[name]} does nothing for crossover_rate=0. Raise the rate, "
                "or leave it out."
            )


def _check_sizes(recipe: Recipe, config: Config) -> None:
    assert config.epochs is not None  # resolved
    if recipe.warmup_epochs and recipe.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"recipe.warmup_epochs={recipe.warmup_epochs}, expected fewer than epochs="
            f"{config.epochs}. Lower it; 0 starts at the full learning rate."
        )
    if config.batch_size % recipe.accumulate:
        raise ConfigError(
            f"recipe.accumulate={recipe.accumulate} cannot divide batch_size={config.batch_size} "
            "into equal parts. Take a divisor of it."
        )
    for name in ("mixup", "cutmix"):
        if getattr(recipe, name) and config.batch_size == recipe.accumulate:
            raise ConfigError(
                f"recipe.{name}={getattr(recipe, name)} does nothing for batch_size="
                f"{config.batch_size} and recipe.accumulate={recipe.accumulate}: each image is "
                "alone. Raise the one or lower the other."
            )
