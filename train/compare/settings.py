"""The settings of a comparison. Imports neither JAX nor Flax, so that `--help` is quick."""

import dataclasses
import math
import re
from pathlib import Path
from typing import get_args

import tyro

from train import config as runs
from train.config import Config, HostOptions, MethodName, MethodOptions

__all__ = ["CROSSOVER", "DISTILL", "EXTENT", "REPLACED", "STARTS", "Settings", "distills"]
__all__ += ["lends", "resolve"]

CROSSOVER, DISTILL = "crossover", "distill"
ADDITIONS = (CROSSOVER, DISTILL)
TRANSFERS = (*get_args(MethodName), "random_matching", "random_source")
STARTS = ("he", *TRANSFERS, "finetune", "probe", DISTILL)
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
    """Starts: he (no transfer), default, tlvfc, dpiat, weight_selection, net2net, random_matching,
    random_source, finetune (the target's own pretrained weights), probe (a linear classifier on
    the source's features), distill (he, taught by probe). With +crossover behind a start the
    source lends features in training, with +distill it teaches."""
    seeds: int = 5
    """Trainings of every start with every learning rate; their seeds count from --seed."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Highest rates; every start gets the one that is best for it on the validation images."""
    part: str = "1/1"
    """K/N: train only the Kth of N parts of all trainings, for example in a job array."""
    vmap: int = 1
    """Seeds that are trained in one program, where the device's memory allows."""
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


def resolve(settings: Settings) -> Settings:
    """Fills in the data set's defaults and checks all settings.

    Raises:
      ConfigError: naming the setting, its value and what it may be.
    """
    from train.errors import ConfigError  # late: its root brings JAX
    from train.recipe import recipe_of

    defaults = Settings()
    for name in REPLACED:
        if getattr(settings, name) != getattr(defaults, name):
            raise ConfigError(
                f"{name}={getattr(settings, name)!r}: a comparison has no such setting. Use "
                "methods, learning_rates and the name of the folder."
            )
    if not isinstance(settings.source, str):
        raise ConfigError(
            f"source={settings.source}: expected one source, as a comparison has no mixtures. "
            "Compare each, with a folder --name for each."
        )
    resolved = runs.resolve(settings)
    assert isinstance(resolved, Settings)  # the type that it was given
    settings = resolved
    recipe_of(settings)
    wrong = [name for name in settings.methods if not _is_start(name)]
    if wrong or not settings.methods:
        raise ConfigError(
            f"methods={settings.methods}: expected some of {', '.join(STARTS)}, all but probe also "
            f"with +{CROSSOVER}, +{DISTILL} or both in this order."
        )
    if not settings.crossover_rate and any(map(lends, settings.methods)):
        raise ConfigError(f"crossover_rate=0 with +{CROSSOVER}, expected a probability above 0.")
    _check_distillation(settings)
    for name in ("methods", "learning_rates"):
        if len(set(getattr(settings, name))) != len(getattr(settings, name)):
            raise ConfigError(f"{name}={getattr(settings, name)}: one is there twice.")
    if not settings.learning_rates or not all(
        rate > 0 and math.isfinite(rate) for rate in settings.learning_rates
    ):
        raise ConfigError(f"learning_rates={settings.learning_rates}, expected numbers above 0.")
    for name in ("seeds", "vmap"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}={getattr(settings, name)}, expected at least 1.")
    if (
        not re.fullmatch(r"\d+/\d+", settings.part)
        or not 1 <= settings.slice[0] <= (settings.slice[1])
    ):
        raise ConfigError(f"part={settings.part!r}, expected K/N with K from 1 to N, such as 3/8.")
    return settings


def lends(name: str) -> bool:
    """Whether the source lends features to what begins with this start."""
    return CROSSOVER in name.split("+")[1:]


def distills(name: str) -> bool:
    """Whether the source teaches what begins with this start."""
    return DISTILL in name.split("+")


def _is_start(name: str) -> bool:
    base, *additions = name.split("+")
    allowed = [one for one in ADDITIONS if base not in ("probe", one)]
    return base in STARTS and additions == [one for one in allowed if one in additions]


def _check_distillation(settings: Settings) -> None:
    from train.distillation import distillation_of  # late: it brings JAX
    from train.errors import ConfigError

    if settings.distill.name != "none":
        raise ConfigError(
            f"distill={settings.distill.name}: a comparison has starts for that. Leave it out, and "
            f"put {DISTILL} or default+{DISTILL} among methods."
        )
    distillation_of(dataclasses.replace(settings.distill, name="logits"))
