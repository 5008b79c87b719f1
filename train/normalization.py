"""By which mean and standard deviation images are normalized: the source's, the data set's, others.

`train.statistics` measures those of a data set.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from train.batches import pixels_of
from train.config import Config
from train.data import Images
from train.devices import is_first_process
from train.errors import ConfigError
from train.statistics import Statistics, measure

__all__ = [
    "PUBLISHED",
    "expected_statistics",
    "parse_normalization",
    "seen_by_source",
    "statistics_of",
    "unchanged",
]

PUBLISHED: Mapping[str, Statistics] = MappingProxyType(
    {
        "cifar10": Statistics((0.4910, 0.4817, 0.4461), (0.2473, 0.2438, 0.2617)),
        "cifar100": Statistics((0.5070, 0.4868, 0.4414), (0.2675, 0.2564, 0.2760)),
        "food101": Statistics((0.5372, 0.4363, 0.3366), (0.2749, 0.2743, 0.2764)),
        "petimages": Statistics((0.4889, 0.4559, 0.4176), (0.2596, 0.2530, 0.2557)),
        "intel": Statistics((0.4302, 0.4575, 0.4542), (0.2694, 0.2679, 0.2984)),
    }
)
"""Of the training images, as they were published."""


def parse_normalization(text: str) -> Statistics | None:
    """Returns the statistics that numbers stand for; None for `source` and `dataset`.

    Raises:
      ConfigError: if the text is neither of these words, nor two or six numbers that fit.
    """
    if text in ("source", "dataset"):
        return None
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    half = len(values) // 2
    mean, std = tuple(values[:half]), tuple(values[half:])
    if half not in (1, 3) or len(mean) != len(std) or not _usable(mean, std):
        raise ConfigError(
            f"normalization={text!r}, expected source, dataset, or numbers with commas between "
            "them: a mean and a standard deviation above 0, or three of each, the means first. "
            "They are of images scaled to [0, 1]."
        )
    return Statistics(mean * (3 // half), std * (3 // half))


def expected_statistics(
    config: Config, sources: Sequence[Statistics], given: Statistics | None
) -> Statistics:
    """Returns what `normalization=source` stands for, and prints what then expects others.

    Args:
      config: the settings, resolved.
      sources: what each source expects.
      given: what the target's own weights expect; None if it has none, or that is not known.
    """
    weights = f"--target-weights {config.target_weights}"
    name, expected = config.sources[0], sources[0]
    if given is not None and config.method.name == "none":
        name, expected = weights, given
    others: dict[str, Statistics | None] = dict(zip(config.sources[1:], sources[1:], strict=True))
    if config.target_weights is not None and name != weights:
        others[weights] = given
    different = [
        f"; {other} expects {statistics}" if statistics else f"; what {other} expects is not known"
        for other, statistics in others.items()
        if statistics != expected
    ]
    told = different or name == weights
    if told and config.normalization == "source" and is_first_process():
        print(f"images are normalized as {name} expects, by {expected}{''.join(different)}")
    return expected


def statistics_of(config: Config, images: Images, source: Statistics) -> Statistics:
    """Returns what the target's images are normalized by, and prints it if it is not the source's.

    Args:
      config: says which.
      images: of the training, as NumPy arrays or files.
      source: what the source expects.

    Raises:
      ConfigError: if the setting is not understood.
      DataError: if the data set's own statistics cannot be used.
    """
    if config.normalization == "source":
        return source
    chosen = parse_normalization(config.normalization)
    chosen = chosen or PUBLISHED.get(config.dataset) or measure(pixels_of(images))
    if is_first_process():
        print(f"images are normalized by {chosen} (means, standard deviations)")
    return chosen


def seen_by_source(target: Statistics, source: Statistics) -> Callable[[jax.Array], jax.Array]:
    """Returns what turns images normalized for the target into the same ones for the source.

    The function keeps the type of images `[B, H, W, 3]`. Where both are normalized alike it returns
    them as they are.
    """
    if target == source:
        return unchanged
    scale = np.divide(target.std, source.std)
    shift = np.divide(np.subtract(target.mean, source.mean), source.std)
    return functools.partial(_rescaled, scale=scale, shift=shift)


def unchanged(images: jax.Array) -> jax.Array:
    """Returns the images."""
    return images


def _rescaled(images: jax.Array, scale: np.ndarray, shift: np.ndarray) -> jax.Array:
    scale, shift = (jnp.float32(values).reshape(1, 1, 1, 3) for values in (scale, shift))
    return (images.astype(jnp.float32) * scale + shift).astype(images.dtype)


def _usable(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, (*mean, *std))) and min(std) > 0
