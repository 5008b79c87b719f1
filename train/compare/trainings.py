"""Which trainings a comparison has, which part of them is wanted, and which go together."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from train.compare.settings import CLASSIFIERS, Settings

__all__ = ["Training", "all_trainings", "groups", "part_of"]


class Training(NamedTuple):
    """One training, by what tells it from the others.

    Attributes:
      start: where it starts from, of `settings.methods`.
      learning_rate: None for classifiers such as `probe`, which have none.
      seed: of the initialization, the transfer, the batches and the augmentation.
    """

    start: str
    learning_rate: float | None
    seed: int


def all_trainings(settings: Settings) -> tuple[Training, ...]:
    """Every start with every learning rate and every seed; those of one start adjoin."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return tuple(
        Training(start, rate, seed)
        for start in settings.methods
        for rate in ((None,) if start in CLASSIFIERS else settings.learning_rates)
        for seed in seeds
    )


def part_of(trainings: Sequence[Training], number: int, count: int) -> Sequence[Training]:
    """The part `number`, from 1, of `count` parts, which differ by one training at most."""
    size = len(trainings)
    return trainings[size * (number - 1) // count : size * number // count]


def groups(
    trainings: Sequence[Training], done: Collection[Training], most: int
) -> Iterator[tuple[Training, ...]]:
    """The trainings that are not done, in groups of one start, `most` each.

    All seeds of a classifier are one group, as they are one computation.
    """
    missing = [training for training in trainings if training not in done]
    for start, alike in itertools.groupby(missing, key=lambda one: one.start):
        members = tuple(alike)
        size = len(members) if start in CLASSIFIERS else most
        yield from (members[at : at + size] for at in range(0, len(members), size))
