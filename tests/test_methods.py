"""The record of a transfer's choices."""

import dataclasses

import jax
import numpy as np
import pytest

import tlv_jax
from tlv_jax import ConsistentChannels, Method, OptionError, matching, methods, rules
from tlv_jax.layers import standardize_blocks, standardize_flat

PUBLISHED = ["DEFAULT", "BARE", "TLVFC", "DPIAT", "WEIGHT_SELECTION", "NET2NET"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_methods_are_equal_and_hash_equal(name):
    method = getattr(methods, name)
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(Method)}
    again = Method(**fields)
    assert again == method
    assert hash(again) == hash(method)
    assert dataclasses.replace(method, kinds=list(method.kinds)) == method
    assert dataclasses.replace(method, rescale="he") != method
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.head = "keep"


def test_the_published_methods_differ():
    assert len({getattr(methods, name) for name in PUBLISHED}) == len(PUBLISHED)


def test_methods_are_what_their_papers_say():
    assert (
        Method(
            standardize=standardize_flat,
            match=matching.ByIndex(),
            rule=rules.Variance("interleaved", "random", "zero", "avg", shuffle=True),
            head="statistics",
            kinds=("conv",),
        )
        == methods.TLVFC
    )
    assert (
        Method(
            standardize=standardize_blocks,
            match=matching.ByScore(),
            rule=rules.Clip(),
            kinds=("conv", "dense", "norm", "bias"),
        )
        == methods.DPIAT
    )
    assert dataclasses.replace(methods.DPIAT, rule=rules.Uniform()) == methods.WEIGHT_SELECTION
    assert (methods.NET2NET.insert, methods.NET2NET.channels.grow) == ("identity", "copy")


def test_the_default_is_what_did_best_in_the_study():
    assert (
        Method(
            standardize=None,
            match=matching.ByCoverage(),
            rule=rules.Clip(),
            channels=ConsistentChannels(rank="variance", grow="init"),
            head="keep",
            rescale="none",
            kinds=("conv", "norm"),
            insert="init",
        )
        == methods.DEFAULT
    )
    assert dataclasses.replace(methods.DEFAULT, channels=None, kinds=("conv",)) == methods.BARE


def test_a_method_is_a_static_argument():
    traces = []

    def shape_of(method):
        traces.append(method)
        return np.zeros(len(method.kinds))

    shaped = jax.jit(shape_of, static_argnums=0)
    shaped(methods.DPIAT)
    shaped(dataclasses.replace(methods.DPIAT))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"head": "zero"}, "head='zero'.*keep, statistics"),
        ({"rescale": "xavier"}, "rescale='xavier'.*none, he, source"),
        ({"insert": "zero"}, "insert='zero'.*init, identity"),
        ({"kinds": "conv"}, "kinds='conv'.*a tuple"),
        ({"kinds": ()}, "kinds=.*a tuple"),
        ({"kinds": ("conv", "pool")}, "kinds=.*'pool'"),
        ({"rule": rules.Variance}, "rule=.*Variance.*rules.Variance\\(keep="),
        ({"rule": "variance"}, "rule='variance'.*expected a function"),
        ({"match": matching.ByIndex}, "match=.*ByIndex.*matching.ByIndex\\(\\)"),
        ({"match": "index"}, "match='index'.*expected a function"),
        (
            {"channels": ConsistentChannels(), "rule": rules.Variance()},
            "shuffles channels.*shuffle=False",
        ),
        ({"insert": "identity"}, "insert='identity' needs channels.*ConsistentChannels"),
    ],
    ids=str,
)
def test_wrong_choices_are_refused_with_a_way_out(choices, message):
    with pytest.raises(OptionError, match=message):
        Method(**choices)


@pytest.mark.parametrize("choices", [{"rank": "mean"}, {"grow": "random"}], ids=str)
def test_wrong_choices_of_channels_are_refused(choices):
    ((name, value),) = choices.items()
    with pytest.raises(OptionError, match=f"{name}='{value}'"):
        ConsistentChannels(**choices)


@pytest.mark.parametrize("wrong", [{}, "tlvfc", Method], ids=str)
def test_what_is_no_method_is_refused(wrong):
    with pytest.raises(OptionError, match=r"expected a tlv_jax\.Method such as"):
        tlv_jax.plan_transfer({"a": np.zeros((1, 1, 1, 1))}, {"a": np.zeros((1, 1, 1, 1))}, wrong)
