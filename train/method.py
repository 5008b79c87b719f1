"""Turn the method options of a run into a `tlv_jax.Method`."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import tlv_jax
from tlv_jax import layers, matching, methods, rules
from train.config import MethodOptions
from train.errors import ConfigError
from train.run_folder import named_settings

__all__ = ["MATCHERS", "METHODS", "RULES", "STANDARDIZATIONS", "method_of"]

METHODS: Mapping[str, tlv_jax.Method] = MappingProxyType(
    {
        "default": methods.DEFAULT,
        "bare": methods.BARE,
        "tlvfc": methods.TLVFC,
        "dpiat": methods.DPIAT,
        "weight_selection": methods.WEIGHT_SELECTION,
        "net2net": methods.NET2NET,
    }
)
STANDARDIZATIONS = MappingProxyType(
    {
        "flat": layers.standardize_flat,
        "blocks": layers.standardize_blocks,
        "graph": layers.standardize_graph,
    }
)
MATCHERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "coverage": matching.ByCoverage,
        "score": matching.ByScore,
        "score_flat": matching.ByScoreFlat,
        "index": matching.ByIndex,
        "bipartite": matching.Bipartite,
        "random": matching.Random,
        "each_once": matching.EachOnce,
    }
)
SCORES = MappingProxyType({"shape": matching.shape_scores, "position": matching.position_scores})
RULES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "variance": rules.Variance,
        "clip": rules.Clip,
        "full": rules.Full,
        "magnitude": rules.Magnitude,
        "trace": rules.Trace,
        "uniform": rules.Uniform,
    }
)


def method_of(options: MethodOptions) -> tlv_jax.Method | tlv_jax.Fit | None:
    """The method that is named, changed where the options say so; None for no transfer.

    Raises:
      ConfigError: for a setting that the chosen matcher or rule does not have, or of no transfer or
        a fit, which have none.
      OptionError: for choices that contradict each other.
    """
    if options.name in ("none", "fit"):
        named = named_settings(dataclasses.asdict(options), "method.")
        parts = [f"{part}={value}" for part, value in named.items() if value is not None]
        if parts[1:]:  # the first is the method itself
            does = "transfers nothing" if options.name == "none" else "solves for all kernels"
            raise ConfigError(
                f"{', '.join(parts[1:])} with method={options.name}, which {does}. Leave it out, "
                "or name another method."
            )
        return tlv_jax.Fit() if options.name == "fit" else None
    base = METHODS["default" if options.name == "auto" else options.name]
    changes = {
        name: value
        for name in ("head", "rescale", "kinds", "insert")
        if (value := getattr(options, name)) is not None
    }
    if options.standardize is not None:
        changes["standardize"] = STANDARDIZATIONS[options.standardize]
    match = _given(options.match)
    if "score" in match:
        match["score"] = SCORES[match["score"]]
    changes["match"] = _changed("match", base.match, options.match.name, MATCHERS, match)
    changes["rule"] = _changed("rule", base.rule, options.rule.name, RULES, _given(options.rule))
    changes["channels"] = _channels(options, base)
    return dataclasses.replace(base, **changes)


def _channels(options: MethodOptions, base: tlv_jax.Method) -> tlv_jax.ConsistentChannels | None:
    rank, changes = options.channels.name, _given(options.channels)
    channels = base.channels
    if rank == "off":
        channels = None
    elif rank is not None:
        changes["rank"] = rank
        channels = channels or tlv_jax.ConsistentChannels()
    if channels is None:
        if changes:
            raise ConfigError(
                f"method.channels.grow={options.channels.grow}: this method does not choose "
                "channels for all layers. Set method.channels too, for example to variance."
            )
        return None
    return dataclasses.replace(channels, **changes)


def _changed(
    option: str,
    own: Any,
    name: str | None,
    known: Mapping[str, Callable[..., Any]],
    changes: Mapping[str, Any],
) -> Any:
    """A matcher or rule: the method's own or the one that is named, with changed settings."""
    # Named once more, the method's own keeps the settings that the method gave it.
    strategy = own if name is None or known[name] is type(own) else known[name]()
    settings = [field.name for field in dataclasses.fields(strategy)]
    for setting, value in changes.items():
        if setting not in settings:
            raise ConfigError(
                f"method.{option}.{setting}={value} does nothing for {type(strategy).__name__}, "
                f"which has {'the settings ' + ', '.join(settings) if settings else 'no settings'}."
            )
    return dataclasses.replace(strategy, **changes)


def _given(options: Any) -> dict[str, Any]:
    """The settings of a matcher, rule or channels that were not left out."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if name != "name" and value is not None}
