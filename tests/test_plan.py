"""A plan as a value, as a table, and as JSON."""

import dataclasses
import json
import re

import pytest
import trees

import tlv_jax
from tlv_jax import ConsistentChannels, Method, OptionError, TransferPlan, methods, rules

SOURCE = trees.small_network(0, 8, 16)
TARGET = trees.small_network(100, 12, 20, size=5, more=True)
PUBLISHED = ["DEFAULT", "TLVFC", "DPIAT", "WEIGHT_SELECTION", "NET2NET"]
RULES = [
    rules.Clip(),
    rules.Full(),
    rules.Magnitude("min", constrained=True),
    rules.Trace("min"),
    rules.Uniform(),
    rules.Variance("random", "two_tailed", "init", "max", shuffle=False),
]
OTHERS = {
    "rescaled": Method(rescale="source", kinds=("conv", "norm", "bias"), head="statistics"),
    "channels": dataclasses.replace(methods.DPIAT, channels=ConsistentChannels("trace", "copy")),
    **{str(rule): Method(rule=rule) for rule in RULES},
    **{name: getattr(methods, name) for name in PUBLISHED},
}


@pytest.mark.parametrize("name", OTHERS)
def test_json_gives_the_same_plan_back(name):
    before = tlv_jax.plan_transfer(SOURCE, TARGET, OTHERS[name])
    text = before.to_json()
    after = TransferPlan.from_json(text)
    assert after == before
    assert hash(after) == hash(before)
    assert after.to_json() == text
    assert json.loads(text)["format"] == "tlv_jax.TransferPlan/3"


def test_every_rule_has_json():
    assert {type(rule) for rule in RULES} == set(rules.LIBRARY)


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
def test_the_table_names_pairs_rule_order_and_what_stays():
    text = str(tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), methods.TLVFC))
    lines = text.splitlines()
    assert lines[2].split("  ")[0].strip() == "conv1"
    assert "5x5, 3 -> 6" in text
    assert "drawn from statistics" in text
    assert "rule: Variance(keep='interleaved'" in text
    assert "natural order" in text
    assert "no 'norm' in kinds): bn1/bias, bn1/scale" in text
    assert lines[0].index("source") == lines[2].index("conv1", 6)


def test_the_table_names_what_is_inserted_and_how_channels_are_chosen():
    text = str(tlv_jax.plan_transfer(SOURCE, TARGET, methods.NET2NET))
    assert "inserted: zero" in text
    assert re.search(r"channels: by first, \d+% of the axes follow their neighbours", text)
    assert "target: order of execution, traced" in text


def mean(key, source, target):
    return target * 0 + source.mean()


class Clip(rules.Clip):
    """An impostor of the library's."""


@pytest.mark.parametrize("rule", [mean, Clip()], ids=["function", "subclass"])
def test_a_rule_of_the_users_own_has_no_json(rule):
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, Method(rule=rule))
    with pytest.raises(OptionError, match=r"is not one of tlv_jax\.rules"):
        plan.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "null", '{"format": ["tlv_jax"]}'])
def test_other_texts_are_refused(text):
    with pytest.raises(OptionError, match="plan"):
        TransferPlan.from_json(text)


@pytest.mark.parametrize("version", [0, 1, 2, 4])
def test_plans_of_other_versions_are_refused_with_what_to_do(version):
    record = json.loads(tlv_jax.plan_transfer(SOURCE, TARGET).to_json())
    record["format"] = f"tlv_jax.TransferPlan/{version}"
    with pytest.raises(
        OptionError, match=rf"'tlv_jax\.TransferPlan/{version}'\. Make the plan again"
    ):
        TransferPlan.from_json(json.dumps(record))


def test_a_plan_with_an_unknown_rule_is_refused():
    record = json.loads(tlv_jax.plan_transfer(SOURCE, TARGET).to_json())
    record["rule"]["record"] = "Mystery"
    with pytest.raises(OptionError, match="Mystery"):
        TransferPlan.from_json(json.dumps(record))
    record["rule"] = {"record": "Magnitude", "keep": "all"}
    with pytest.raises(OptionError, match="keep='all'"):
        TransferPlan.from_json(json.dumps(record))
    record["rule"] = {"record": "Clip", "keep": "all"}
    with pytest.raises(OptionError, match="keep"):
        TransferPlan.from_json(json.dumps(record))
