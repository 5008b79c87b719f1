"""Settle the settings of a run: fill in defaults, and refuse what is wrong or does nothing."""

import dataclasses
import importlib.util

from train.config import DATASETS, Config, HostOptions
from train.errors import ConfigError
from train.fitting import check_source
from train.normalization import parse_normalization

__all__ = ["resolve"]

OF_PICTURES = ("food101", "petimages", "intel", "folder")  # data sets that are picture files


def resolve(config: Config) -> Config:
    """Fills in the method and the data set's defaults, and checks all settings.

    Raises:
      ConfigError: naming the setting, its value and what it may be.
    """
    defaults = DATASETS[config.dataset]
    config = dataclasses.replace(
        config,
        image_size=defaults.image_size if config.image_size is None else config.image_size,
        epochs=defaults.epochs if config.epochs is None else config.epochs,
    )
    _check_numbers(config)
    parse_normalization(config.normalization)
    _check_data(config)
    _check_stream(config)
    _check_hosts(config.hosts)
    config = _with_method(config)
    _check_sources(config)
    return config


def _check_numbers(config: Config) -> None:
    for setting in ("train_images", "image_size", "epochs", "batch_size", "save_every_steps"):
        value = getattr(config, setting)
        if value is not None and value < 1:
            raise ConfigError(f"{setting}={value}, expected at least 1.")
    for setting in ("learning_rate", "weight_decay"):
        if not 0 <= getattr(config, setting) < float("inf"):
            raise ConfigError(f"{setting}={getattr(config, setting)}, expected at least 0.")
    if config.save_every_minutes is not None and not config.save_every_minutes > 0:
        raise ConfigError(f"save_every_minutes={config.save_every_minutes}, expected above 0.")
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed}, expected at least 0.")
    if not 0 <= config.crossover_rate <= 1:
        raise ConfigError(f"crossover_rate={config.crossover_rate}, expected a probability.")


def _check_data(config: Config) -> None:
    if config.dataset == "elpv" and config.data_dir is not None:
        raise ConfigError(
            f"data_dir={str(config.data_dir)!r} does nothing for dataset='elpv', which comes with "
            "a package. Set dataset=folder to train on your own pictures, or leave it out."
        )
    if config.on_bad_image != Config.on_bad_image and config.dataset not in OF_PICTURES:
        raise ConfigError(
            f"on_bad_image={config.on_bad_image!r} does nothing for dataset={config.dataset!r}, "
            f"but for {', '.join(OF_PICTURES)}. Leave it out."
        )


def _check_stream(config: Config) -> None:
    if config.workers < 0 or (config.workers and not config.stream):
        raise ConfigError(
            f"workers={config.workers} with stream={config.stream}, expected at least 0, and 0 "
            "without stream: only streamed pictures are read by processes of their own."
        )
    if config.stream and config.dataset not in OF_PICTURES:
        raise ConfigError(
            f"stream=True for dataset={config.dataset!r}, whose images are arrays in memory, "
            f"expected one of {', '.join(OF_PICTURES)}. Leave stream out."
        )
    if config.stream and importlib.util.find_spec("grain") is None:
        raise ConfigError(
            "stream=True needs the package grain, which is not installed. "
            "Run: pip install 'tlv-jax[stream]'"
        )


def _check_hosts(hosts: HostOptions) -> None:
    given = [
        f"hosts.{name}={value}"
        for name, value in vars(hosts).items()
        if name != "join" and value is not None
    ]
    if given and not hosts.join:
        raise ConfigError(
            f"{', '.join(given)} without hosts.join: each host would train alone. Set hosts.join "
            "too, or leave it out."
        )


def _with_method(config: Config) -> Config:
    """Settles the method that is left out."""
    if config.method.name != "auto":
        return config
    if config.target_weights is not None:
        raise ConfigError(
            f"target_weights={str(config.target_weights)!r} without a method: the transfer of "
            "the default method would go over these weights. Set method=none to train them as "
            "they are, or name the method."
        )
    return dataclasses.replace(config, method=dataclasses.replace(config.method, name="default"))


def _check_sources(config: Config) -> None:
    """Checks the sources, and that all that is said of them does something."""
    count, names = len(config.sources), ", ".join(config.sources)
    if not count:
        raise ConfigError("source=(): expected an architecture. Leave it out for the default one.")
    if count > 1 and config.method.name == "none":
        raise ConfigError(
            f"source={names} with method=none: the first could lend features, the others would do "
            "nothing. Give one source."
        )
    if count == 1 and config.method.name == "fit":
        check_source(config.sources[0])
    elif config.method.name == "fit":
        raise ConfigError(
            f"source={names} with method=fit: the target is made to compute what one source "
            "computes. Give one source, or another method."
        )
    if config.distill.name == "plan" and (count > 1 or config.method.name in ("none", "fit")):
        raise ConfigError(
            f"distill=plan with source={names} and method={config.method.name}: expected one "
            "source and a transfer, whose plan pairs the layers. Set distill=logits."
        )
    for setting in ("source_weights", "source_prefix"):
        value = getattr(config, setting)
        given = value if isinstance(value, tuple) else (value,)
        if value is not None and not config.uses_source:
            raise ConfigError(
                f"{setting}={', '.join(map(str, given))!r} does nothing: no source is used with "
                "method=none, crossover_rate=0 and distill=none. Leave it out."
            )
        if value is not None and len(given) != count:
            raise ConfigError(
                f"{setting}={', '.join(map(str, given))!r}: expected one for each source, in the "
                f"order of source={names!r}."
            )
