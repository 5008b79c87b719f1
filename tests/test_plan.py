import dataclasses
import functools
import json

import pytest
import trees

import tlv_jax
from tlv_jax import OptionError, TransferPlan, rules


def plan(**options):
    settings = tlv_jax.presets.tlvfc() | options
    return tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), **settings)


@pytest.mark.parametrize(
    "options",
    [{}, {"kinds": ("conv", "norm", "bias")}, {"rule": rules.clip, "head": "keep"}],
    ids=str,
)
def test_json_gives_the_same_plan_back(options):
    before = plan(**options)
    after = TransferPlan.from_json(before.to_json())
    assert after == before
    assert hash(after) == hash(before)


def test_the_table_names_pairs_rule_order_and_what_stays():
    text = str(plan())
    lines = text.splitlines()
    assert lines[2].split("  ")[0].strip() == "conv1"
    assert "5x5, 3 -> 6" in text
    assert "drawn from statistics" in text
    assert "variance(keep='interleaved'" in text
    assert "natural order" in text
    assert "no 'norm' in kinds): bn1/bias, bn1/scale" in text
    assert lines[0].index("source") == lines[2].index("conv1", 6)


def test_a_rule_of_the_users_own_has_no_json():
    def mean(key, source, target):
        return target * 0 + source.mean()

    with pytest.raises(OptionError, match=r"mean.*is not one of tlv_jax\.rules"):
        plan(rule=mean).to_json()


def test_an_impostor_of_a_library_rule_has_no_json():
    def variance(key, source, target):
        return target

    with pytest.raises(OptionError, match="is not one of"):
        plan(rule=variance).to_json()


def test_a_setting_that_json_cannot_hold_is_refused():
    bound = plan(rule=functools.partial(rules.variance, keep="max"))
    settings = (*bound.rule.settings, ("zone", frozenset()))
    odd = dataclasses.replace(bound, rule=rules.BoundRule(rules.variance, settings))
    with pytest.raises(OptionError, match="fit into JSON"):
        odd.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "tlv_jax.TransferPlan/0"}',
        '{"format": "tlv_jax.TransferPlan/1"}',
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(OptionError, match="plan"):
        TransferPlan.from_json(text)


def test_a_plan_with_an_unknown_rule_is_refused():
    record = json.loads(plan().to_json())
    record["rule"]["name"] = "mystery"
    with pytest.raises(OptionError, match="mystery"):
        TransferPlan.from_json(json.dumps(record))
