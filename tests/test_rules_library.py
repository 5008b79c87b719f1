"""What all rules of the library have in common."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import KERNEL_SHAPES, normal

from tlv_jax import OptionError, rules

RULES = [
    rules.Clip(),
    rules.Full(),
    rules.Magnitude(),
    rules.Magnitude(keep="min", constrained=True),
    rules.Trace(),
    rules.Trace(keep="min"),
    rules.Uniform(),
    rules.Variance(),
    rules.Variance(keep="random", remove="two_tailed", pad="init", pool="max"),
]
SHAPES = [*KERNEL_SHAPES, ((1, 1, 1, 1), (1, 1, 1, 1))]


def test_every_rule_is_held_to_this():
    assert {type(rule) for rule in RULES} == set(rules.LIBRARY)


@pytest.mark.parametrize(("source", "target"), SHAPES, ids=str)
def test_rules_give_the_same_under_jit(key, source, target):
    source, target = normal(0, *source), normal(1, *target)
    # That of variance is held to the same elsewhere, on more shapes.
    others = [rule for rule in RULES if not isinstance(rule, rules.Variance)]
    traced = jax.jit(lambda *arguments: [rule(*arguments) for rule in others])(key, source, target)
    for rule, kernel in zip(others, traced, strict=True):
        np.testing.assert_array_equal(kernel, rule(key, source, target), err_msg=str(rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_the_answer_has_the_targets_shape_and_dtype_and_is_numpys_if_both_are(key, rule, dtype):
    source, target = normal(0, 3, 3, 6, 4), normal(1, 3, 3, 4, 6).astype(dtype)
    fitted = rule(key, source, target)
    assert type(fitted) is np.ndarray
    assert (fitted.shape, fitted.dtype) == (target.shape, target.dtype)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_array_of_jax_makes_the_answer_one(key, rule):
    source, target = normal(0, 1, 1, 6, 4), normal(1, 1, 1, 4, 6)
    fitted = rule(key, source, target)
    for arrays in ((jnp.asarray(source), target), (source, jnp.asarray(target))):
        mixed = rule(key, *arrays)
        assert isinstance(mixed, jax.Array)
        np.testing.assert_array_equal(mixed, fitted)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("source", "target"), SHAPES, ids=str)
def test_arguments_are_only_read(key, rule, source, target):
    source, target = normal(0, *source), normal(1, *target)
    before = source.copy(), target.copy()
    for array in (source, target):
        array.setflags(write=False)
    fitted = rule(key, source, target)
    np.testing.assert_array_equal(source, before[0])
    np.testing.assert_array_equal(target, before[1])
    assert not np.shares_memory(fitted, target)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_rules_are_equal_and_say_their_settings(rule):
    again = dataclasses.replace(rule)
    assert again == rule
    assert hash(again) == hash(rule)
    assert eval(str(rule), vars(rules)) == rule
    assert len(set(RULES)) == len(RULES)
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, None)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (rules.Variance, {"keep": "maxVar"}),
        (rules.Variance, {"remove": "all"}),
        (rules.Variance, {"pad": "same"}),
        (rules.Variance, {"pool": "sum"}),
        (rules.Magnitude, {"keep": "largest"}),
        (rules.Trace, {"keep": "random"}),
    ],
    ids=str,
)
def test_unknown_options_are_refused_with_what_is_known(rule, settings):
    ((name, value),) = settings.items()
    with pytest.raises(OptionError, match=f"{name}='{value}' is not known; expected one of"):
        rule(**settings)
