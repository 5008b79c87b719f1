"""Rank sources: probe each on the training images, and score it on the validation images."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console

import tlv_jax
from train.config import Config
from train.data import Splits, stratified_subset
from train.datasets import load_dataset
from train.errors import ConfigError, DataError, name_some
from train.machine import provenance
from train.networks import keys_of, make_target
from train.rank.candidates import Candidate, candidates_of
from train.rank.ranking import Ranking, Row, in_order
from train.rank.scoring import score_pixels, score_random, score_source, task_of
from train.rank.settings import Settings
from train.resolve import resolve
from train.results import write_whole

__all__ = ["Ranking", "Row", "rank"]

# Of a run, which a ranking has too.
SHARED = ("dataset", "data_dir", "on_bad_image", "stream", "image_size", "batch_size", "seed")


def rank(settings: Settings, *, console: Console | None = None) -> Ranking:
    """Probes sources on a data set by `tlv_jax.probe`. The test images are not looked at.

    A source that cannot be probed, for example because its weights are missing, gets a row that
    says why. Two controls are ranked too: the pixels of the images, without any network, and the
    best source's architecture with random weights.

    Args:
      settings: the sources and the images.
      console: where to print; standard output if None.

    Raises:
      TLVError: for a wrong setting, images that cannot be had, or a folder that cannot be made.
    """
    console = console or Console()
    candidates, config = candidates_of(settings), _config_of(settings)
    splits = _limited(load_dataset(config), settings)
    task = task_of(config, splits, _target_of(config, settings, splits))
    folder = _make_folder(settings)
    kept = {f"settings.{name}": value for name, value in dataclasses.asdict(settings).items()}
    constants, rows = {**provenance(), **kept}, []

    def keep(row: Row) -> None:
        rows.append(row)
        ranked = Ranking(folder, in_order(rows))
        write_whole(folder / "rank.csv", ranked.to_csv(constants))
        _print(console, _line(row))

    _print(
        console,
        f"{len(candidates)} sources: fitted to {len(splits.train)} training images, scored on "
        f"{len(splits.validation)} validation images of {config.image_size} pixels a side",
    )
    for candidate in candidates:
        keep(score_source(task, candidate))
    best = _best(candidates, rows)
    keep(score_pixels(task))
    if best is not None:
        keep(score_random(task, best))
    ranking = Ranking(folder, in_order(rows))
    _print(console, f"\n{ranking}\n\ntable: {folder / 'rank.csv'}")
    return ranking


def _config_of(settings: Settings) -> Config:
    """The settings of a run that has the same images."""
    if settings.limit < 1:
        raise ConfigError(f"limit={settings.limit}, expected at least 1.")
    if settings.target_args and settings.target is None:
        raise ConfigError(
            f"target_args={settings.target_args} does nothing without target. Leave it out."
        )
    config = Config(**{name: getattr(settings, name) for name in SHARED})
    if settings.target is not None:
        config = dataclasses.replace(
            config, target=settings.target, target_args=settings.target_args, crossover_rate=0.0
        )
    return resolve(config)


def _limited(splits: Splits, settings: Settings) -> Splits:
    """At most so many training images, of each class in proportion."""
    limit, train = settings.limit, splits.train
    if limit < len(train):
        rows = stratified_subset(train.labels, limit, seed=settings.seed)
        train = train[rows]
    counts = np.bincount(train.labels, minlength=len(splits.classes))
    if few := [name for name, count in zip(splits.classes, counts, strict=True) if count < 2]:
        raise DataError(
            f"{settings.dataset} has fewer than two training images of {name_some(few)}, expected "
            f"two of each class for a cross-validation. Add some, or raise limit={limit}."
        )
    return dataclasses.replace(splits, train=train)


def _target_of(config: Config, settings: Settings, splits: Splits) -> tlv_jax.Network | None:
    if settings.target is None:
        return None
    key = keys_of(config.seed).init
    return make_target(config, len(splits.classes), jnp.dtype("float32"), key).network


def _make_folder(settings: Settings) -> Path:
    """A new folder, with a number behind its name if there is one already."""
    wanted = settings.out / (settings.name or f"rank-{settings.dataset}")
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    folder = next(path for path in itertools.chain([wanted], numbered) if not path.exists())
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} cannot be made: {error}. Give another with --out."
        ) from error
    return folder


def _best(candidates: Sequence[Candidate], rows: Sequence[Row]) -> Candidate | None:
    """The source of the best row; None if none could be scored."""
    best = in_order(rows)[0]
    return None if best.note else candidates[rows.index(best)]


def _line(row: Row) -> str:
    if row.note:
        return f"{row.name}: {row.note}"
    return f"{row.name}: balanced accuracy {row.balanced_accuracy:.3f}, {row.seconds:.0f} s"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
