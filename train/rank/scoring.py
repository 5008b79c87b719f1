"""Score one source, or one control: a row of the ranking."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import importers
import tlv_jax
from tlv_jax.errors import TLVError
from tlv_jax.probe import probe_features
from train.augment import normalize
from train.batches import pixels_of
from train.config import Config
from train.data import Images, Splits
from train.networks import fixed_size, keys_of, source_initializer
from train.probe import pixels_by_part
from train.rank.candidates import Candidate
from train.rank.ranking import Row

__all__ = ["Task", "score_pixels", "score_random", "score_source", "task_of"]

DTYPE = jnp.dtype("float32")


class Task(NamedTuple):
    """What all sources are scored on.

    Attributes:
      config: has the size of the images, the batch size, and the seed of random weights.
      splits: classifiers are fitted to the training images and score the validation images.
      train: training images in memory, uint8 `[N, H, W, C]`.
      validation: validation images, likewise.
      target: that sources are compared with, if there is one.
    """

    config: Config
    splits: Splits
    train: np.ndarray
    validation: np.ndarray
    target: tlv_jax.Network | None


def task_of(config: Config, splits: Splits, target: tlv_jax.Network | None) -> Task:
    """Reads the images that are needed."""
    return Task(config, splits, _in_memory(splits.train), _in_memory(splits.validation), target)


def _in_memory(images: Images) -> np.ndarray:
    pixels = pixels_of(images)
    return pixels if isinstance(pixels, np.ndarray) else np.concatenate(list(pixels))


def score_source(task: Task, candidate: Candidate) -> Row:
    """Scores a source as it is."""

    def compute() -> tuple[tlv_jax.ProbeResult, float | None]:
        source = _load(task, candidate)
        return _probe(task, source, source.variables), _similarity(task, source)

    return _row(str(candidate), "source", compute)


def score_random(task: Task, candidate: Candidate) -> Row:
    """Scores the architecture of a source with its own initialization, normalized as the source."""

    def compute() -> tuple[tlv_jax.ProbeResult, float | None]:
        source = _load(task, candidate)
        variables = source_initializer(source)(keys_of(task.config.seed).init)
        return _probe(task, source, variables), _similarity(task, source)

    return _row(f"{candidate.architecture}, random weights", "control", compute)


def score_pixels(task: Task) -> Row:
    """Scores the images themselves, averaged to at most 16 pixels a side."""

    def compute() -> tuple[tlv_jax.ProbeResult, float | None]:
        splits = task.splits
        pixels = pixels_by_part(splits, task.config.batch_size)
        held_out = pixels("validation"), splits.validation.labels
        return probe_features(pixels("train"), splits.train.labels, held_out), None

    return _row("raw pixels", "control", compute)


def _row(
    name: str,
    kind: Literal["source", "control"],
    compute: Callable[[], tuple[tlv_jax.ProbeResult, float | None]],
) -> Row:
    """The row of what is computed, or of why it cannot be."""
    start = time.monotonic()
    try:
        result, similarity = compute()
    except (TLVError, jax.errors.JaxRuntimeError) as error:
        seconds = time.monotonic() - start
        return Row(name, kind, seconds, note=(str(error) or repr(error)).splitlines()[0])
    return Row(
        name=name,
        kind=kind,
        seconds=time.monotonic() - start,
        balanced_accuracy=result.balanced_accuracy,
        accuracy=result.accuracy,
        features=result.features,
        penalty=result.penalty,
        similarity=similarity,
    )


def _load(task: Task, candidate: Candidate) -> importers.Pretrained:
    size = fixed_size(candidate.architecture, task.config)
    return importers.load(candidate.architecture, candidate.file, image_size=size)


def _similarity(task: Task, source: importers.Pretrained) -> float | None:
    return None if task.target is None else tlv_jax.similarity(source.network, task.target)


def _probe(task: Task, source: importers.Pretrained, variables: Any) -> tlv_jax.ProbeResult:
    """Probes the source's network with these variables, on images normalized as it expects."""
    expected = source.preprocess

    def apply(variables: Any, pixels: jax.Array) -> Any:
        images = normalize(pixels, expected.mean, expected.std, DTYPE)
        return source.model.apply(variables, images)

    return tlv_jax.probe(
        tlv_jax.trace(apply, variables, task.train[:1]),
        task.train,
        task.splits.train.labels,
        (task.validation, task.splits.validation.labels),
        batch_size=task.config.batch_size,
    )
