"""The settings of a comparison. Imports neither JAX nor Flax, so that `--help` is quick."""

import dataclasses
from pathlib import Path
from typing import get_args

import tyro

from train.config import Config, HostOptions, MethodName, MethodOptions

__all__ = [
    "ADDITIONS",
    "CLASSIFIERS",
    "CROSSOVER",
    "DISTILL",
    "EXTENT",
    "FITS",
    "HEAD",
    "REPLACED",
    "STARTS",
    "Settings",
    "distills",
    "lends",
]

CROSSOVER, DISTILL, HEAD = "crossover", "distill", "head"
ADDITIONS = (CROSSOVER, DISTILL, HEAD)
TRANSFERS = (*get_args(MethodName), "random_matching", "random_source")
FITS = ("fit", "fit_random")
# Linear classifiers, which are fitted: nothing in them is random, and they have no learning rate.
CLASSIFIERS = ("probe", "pixels")
STARTS = ("he", *TRANSFERS, *FITS, "lsuv", "finetune", *CLASSIFIERS, DISTILL)
# How much is compared, not what: a comparison may be continued with others of these.
EXTENT = ("methods", "seeds", "learning_rates", "part", "vmap")
# Settings of a single run, which a comparison replaces.
REPLACED = (
    *("learning_rate", "baseline", "resume", "hosts", "shard_params", "method"),
    *("save_every_steps", "save_every_minutes", "stream", "workers", "target_weights", "wandb"),
)


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    """Trainings of one target from several starts, on the same images and under one budget.

    All settings of a run that are not listed here mean here what they mean there.
    """

    source: str = "efficientnet_lite0"
    """Architecture of the pretrained network; "python -m importers list" names them all."""
    source_weights: Path | None = None
    """A .pth or .safetensors file of the source; by default its published weights."""
    source_prefix: str | None = None
    """What the names of the source begin with, if that file holds several networks."""
    methods: tuple[str, ...] = (
        *("he", "default", "tlvfc", "dpiat", "weight_selection", "random_matching"),
    )
    """Starts: he (no transfer), default, bare (as default, but convs alone and each by itself),
    tlvfc, dpiat, weight_selection, net2net, random_matching, random_source, fit (kernels solved
    for, so that the target computes what the source computes of training images), fit_random (the
    same, but the source has random weights), lsuv (no transfer: kernels scaled by what they write
    on training images), finetune (the target's own pretrained weights), probe (a linear classifier
    on the source's features), pixels (the same on the images themselves), distill (he, taught by
    probe). With +crossover behind a start the source lends features in training, with +distill it
    teaches, with +head the last layer is solved for by the labels first."""
    seeds: int = 5
    """Trainings of every start with every learning rate; their seeds count from --seed."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Highest rates; every start gets the one that is best for it on the validation images."""
    part: str = "1/1"
    """K/N: train only the Kth of N parts of all trainings, for example in a job array."""
    vmap: int = 1
    """Trainings of one start, of any rates and seeds, in one program, where memory allows."""
    learning_rate: tyro.conf.Suppress[float] = Config.learning_rate
    baseline: tyro.conf.Suppress[bool] = Config.baseline
    resume: tyro.conf.Suppress[bool] = Config.resume
    save_every_steps: tyro.conf.Suppress[int | None] = Config.save_every_steps
    save_every_minutes: tyro.conf.Suppress[float | None] = Config.save_every_minutes
    shard_params: tyro.conf.Suppress[bool] = Config.shard_params
    stream: tyro.conf.Suppress[bool] = Config.stream
    workers: tyro.conf.Suppress[int] = Config.workers
    target_weights: tyro.conf.Suppress[Path | None] = Config.target_weights
    wandb: tyro.conf.Suppress[bool] = Config.wandb
    method: tyro.conf.Suppress[MethodOptions] = dataclasses.field(default_factory=MethodOptions)
    hosts: tyro.conf.Suppress[HostOptions] = dataclasses.field(default_factory=HostOptions)

    @property
    def folder(self) -> Path:
        """The folder of the comparison."""
        target = self.target.rpartition(":")[2]  # of MODULE:NAME the name
        return self.out / (self.name or f"compare-{self.source}-{target}-{self.dataset}")

    @property
    def slice(self) -> tuple[int, int]:
        """The part and the number of parts, both from 1."""
        number, _, count = self.part.partition("/")
        return int(number), int(count)


def lends(name: str) -> bool:
    """Whether the source lends features to what begins with this start."""
    return CROSSOVER in name.split("+")[1:]


def distills(name: str) -> bool:
    """Whether the source teaches what begins with this start."""
    return DISTILL in name.split("+")
