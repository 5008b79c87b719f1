import dataclasses

import pytest
import tyro

import tlv_jax
from tlv_jax import matching, methods, rules
from train.config import Config, MethodOptions
from train.errors import ConfigError
from train.method import METHODS, method_of


def method(*arguments):
    """The method of a command line."""
    return method_of(tyro.cli(Config, args=arguments).method)


def test_the_library_s_method_is_the_default():
    assert method() == methods.DEFAULT
    assert method_of(MethodOptions()) == methods.DEFAULT


@pytest.mark.parametrize("name", METHODS)
def test_a_name_alone_is_the_published_method(name):
    assert method("--method", name) == getattr(methods, name.upper())


@pytest.mark.parametrize(
    ("arguments", "base", "changes"),
    [
        (["--method.head", "statistics"], "DEFAULT", {"head": "statistics"}),
        (["--method.rescale", "he"], "DEFAULT", {"rescale": "he"}),
        (["--method.kinds", "conv"], "DEFAULT", {"kinds": ("conv",)}),
        (["--method.channels", "off"], "DEFAULT", {"channels": None}),
        (["--method", "net2net", "--method.insert", "init"], "NET2NET", {"insert": "init"}),
        (
            ["--method.standardize", "blocks"],
            "DEFAULT",
            {"standardize": tlv_jax.layers.standardize_blocks},
        ),
        (["--method.match", "index"], "DEFAULT", {"match": matching.ByIndex()}),
        (
            ["--method.match", "random", "--method.match.seed", "3"],
            "DEFAULT",
            {"match": matching.Random(3)},
        ),
        (
            ["--method", "dpiat", "--method.match.score", "position"],
            "DPIAT",
            {"match": matching.ByScore(matching.position_scores)},
        ),
        (
            ["--method", "tlvfc", "--method.rule.shuffle", "False"],
            "TLVFC",
            {"rule": dataclasses.replace(methods.TLVFC.rule, shuffle=False)},
        ),
        (
            ["--method.rule", "magnitude", "--method.rule.keep", "min"],
            "DEFAULT",
            {"rule": rules.Magnitude(keep="min")},
        ),
        (
            ["--method.channels", "magnitude"],
            "DEFAULT",
            {"channels": tlv_jax.ConsistentChannels(rank="magnitude")},
        ),
        (
            ["--method", "net2net", "--method.channels.grow", "init"],
            "NET2NET",
            {"channels": tlv_jax.ConsistentChannels(rank="first", grow="init")},
        ),
        (
            ["--method", "net2net", "--method.channels", "off", "--method.insert", "init"],
            "NET2NET",
            {"channels": None, "insert": "init"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_part_of_a_method_can_be_changed(arguments, base, changes):
    assert method(*arguments) == dataclasses.replace(getattr(methods, base), **changes)


def test_a_rule_that_is_named_again_keeps_the_method_s_settings():
    assert method("--method", "net2net", "--method.rule", "variance") == methods.NET2NET


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--method.rule.keep", "max"], ConfigError, r"rule\.keep=max does nothing for Clip"),
        (["--method.match", "index", "--method.match.score", "shape"], ConfigError, "no settings"),
        (["--method.rule", "magnitude", "--method.rule.pad", "init"], ConfigError, "constrained"),
        (
            ["--method", "tlvfc", "--method.channels.grow", "copy"],
            ConfigError,
            r"Set method\.channels too",
        ),
        (["--method", "tlvfc", "--method.channels", "first"], tlv_jax.TLVError, "shuffle=False"),
        (["--method", "dpiat", "--method.insert", "identity"], tlv_jax.TLVError, "needs channels"),
        (["--method.rule", "variance"], tlv_jax.TLVError, "shuffle=False"),
        (["--method.rule", "magnitude", "--method.rule.keep", "random"], tlv_jax.TLVError, "max"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        method(*arguments)
