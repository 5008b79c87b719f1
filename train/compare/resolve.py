"""Settle the settings of a comparison, and refuse what is wrong or does nothing."""

import dataclasses
import math
import re

from train.compare.settings import (
    ADDITIONS,
    CLASSIFIERS,
    CROSSOVER,
    DISTILL,
    REPLACED,
    STARTS,
    Settings,
    distills,
    lends,
)
from train.distillation import distillation_of
from train.errors import ConfigError
from train.recipe import recipe_of
from train.resolve import resolve as resolve_run
from train.run_folder import flat_settings

__all__ = ["check_used", "resolve"]


def resolve(settings: Settings) -> Settings:
    """Fills in the data set's defaults and checks all settings.

    Raises:
      ConfigError: naming the setting, its value and what it may be.
    """
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
    resolved = resolve_run(settings)
    assert isinstance(resolved, Settings)  # the type that it was given
    recipe_of(resolved)
    _check_starts(resolved)
    _check_distillation(resolved)
    _check_extent(resolved)
    return resolved


def check_used(settings: Settings) -> None:
    """Refuses what does nothing for any start of a new comparison.

    One that is continued may have other starts now than those that it was made for.

    Raises:
      ConfigError: naming the setting.
    """
    defaults, given = flat_settings(Settings()), flat_settings(settings)
    of_additions = (
        (CROSSOVER, lends, ("crossover_rate", "recipe.crossover_")),
        (DISTILL, distills, ("distill.",)),
    )
    for addition, has, prefixes in of_additions:
        named = [name for name in given if name.startswith(prefixes)]
        unused = [f"{name}={given[name]}" for name in named if given[name] != defaults[name]]
        if unused and not any(map(has, settings.methods)):
            raise ConfigError(
                f"{', '.join(unused)} does nothing for methods={', '.join(settings.methods)}. "
                f"Leave it out, or add a start with +{addition}, such as default+{addition}."
            )


def _check_starts(settings: Settings) -> None:
    wrong = [name for name in settings.methods if not _is_start(name)]
    if wrong or not settings.methods:
        additions = ", ".join(f"+{one}" for one in ADDITIONS)
        raise ConfigError(
            f"methods={settings.methods}: expected some of {', '.join(STARTS)}, all but "
            f"{' and '.join(CLASSIFIERS)} also with some of {additions} in this order."
        )
    if not settings.crossover_rate and any(map(lends, settings.methods)):
        raise ConfigError(f"crossover_rate=0 with +{CROSSOVER}, expected a probability above 0.")


def _is_start(name: str) -> bool:
    base, *additions = name.split("+")
    allowed = [one for one in ADDITIONS if base not in (*CLASSIFIERS, one)]
    return base in STARTS and additions == [one for one in allowed if one in additions]


def _check_distillation(settings: Settings) -> None:
    if settings.distill.name != "none":
        raise ConfigError(
            f"distill={settings.distill.name}: a comparison has starts for that. Leave it out, and "
            f"put {DISTILL} or default+{DISTILL} among methods."
        )
    distillation_of(dataclasses.replace(settings.distill, name="logits"))


def _check_extent(settings: Settings) -> None:
    for name in ("methods", "learning_rates"):
        if len(set(getattr(settings, name))) != len(getattr(settings, name)):
            raise ConfigError(f"{name}={getattr(settings, name)}: one is there twice.")
    rates = settings.learning_rates
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ConfigError(f"learning_rates={rates}, expected numbers above 0.")
    for name in ("seeds", "vmap"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}={getattr(settings, name)}, expected at least 1.")
    known = re.fullmatch(r"\d+/\d+", settings.part)
    if not known or not 1 <= settings.slice[0] <= settings.slice[1]:
        raise ConfigError(f"part={settings.part!r}, expected K/N with K from 1 to N, such as 3/8.")
