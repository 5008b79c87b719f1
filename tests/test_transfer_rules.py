import functools
import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from tlv_jax import OptionError, rules, selection, variance_rule
from tlv_jax.rules import bind

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "variance_transfer.json").read_text())
RECORDED = np.load(GOLDEN / "variance_transfer.npz")
NAMES = {"maxVar": "max", "minVar": "min", "interLeaved": "interleaved", "twoTailed": "two_tailed"}
DETERMINISTIC = list(NAMES.values())


@functools.partial(jax.jit, static_argnames=("keep", "remove", "pad", "pool", "shuffle"))
def fit(key, source, target, **settings):
    return rules.variance(key, source, target, **settings)


def to_flax(kernel):
    """`[O, I, H, W] -> [H, W, I, O]`."""
    return np.transpose(kernel, (2, 3, 1, 0))


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("case", [case for case in CASES if case["status"] == "ok"], ids=str)
def test_variance_agrees_with_the_recorded_answers(key, case):
    source, target, expected = (
        to_flax(RECORDED[f"{case['name']}.{part}"]) for part in ("src", "dst", "out")
    )
    settings = {"keep": NAMES[case["keep"]], "remove": NAMES[case["remove"]]}
    fitted = fit(key, source, target, pad=case["pad"], pool=case["pool"], shuffle=False, **settings)
    np.testing.assert_allclose(fitted, expected, rtol=1e-6, atol=1e-6)


def test_the_recorded_answers_are_all_there():
    assert sum(case["status"] == "ok" for case in CASES) == 158


@pytest.mark.parametrize("case", [case for case in CASES if case["status"] != "ok"], ids=str)
def test_variance_succeeds_where_the_published_code_fails(key, case):
    shapes = [(*size, i, o) for o, i, *size in (case["src"], case["dst"])]
    source, target = (normal(seed, shape) for seed, shape in enumerate(shapes))
    keep, remove = NAMES[case["keep"]], NAMES[case["remove"]]
    fitted = fit(key, source, target, keep=keep, remove=remove, shuffle=False)
    np.testing.assert_array_equal(fitted, oracles.variance_rule(source, target, keep, remove))


channels = st.integers(1, 9)


@st.composite
def kernel_shapes(draw):
    ndim = draw(st.integers(1, 3))
    spatial = st.tuples(*[st.integers(1, 7 if ndim < 3 else 4)] * ndim)
    return [(*draw(spatial), draw(channels), draw(channels)) for _ in range(2)]


def every_slice(kernel):
    """All spatial slices of a kernel, `[I * O, *spatial]`, as bytes."""
    flat = np.moveaxis(kernel.reshape(*kernel.shape[:-2], -1), -1, 0)
    return {np.ascontiguousarray(one).tobytes() for one in flat}


def check_any_shape_into_any_shape(shapes, keep, remove):
    source, target = (normal(seed, shape) for seed, shape in enumerate(shapes))
    arguments = jax.random.key(0), jnp.asarray(source), jnp.asarray(target)
    fitted = np.asarray(fit(*arguments, keep=keep, remove=remove, shuffle=False))
    assert fitted.shape == target.shape
    assert np.isfinite(fitted).all()
    np.testing.assert_allclose(
        fitted, oracles.variance_rule(source, target, keep, remove), rtol=1e-5, atol=1e-6
    )
    if source.shape[:-2] == target.shape[:-2]:
        assert every_slice(fitted) <= every_slice(source) | every_slice(target)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    shapes=kernel_shapes(),
    keep=st.sampled_from(DETERMINISTIC),
    remove=st.sampled_from(DETERMINISTIC),
)
def test_any_shape_goes_into_any_shape(shapes, keep, remove):
    check_any_shape_into_any_shape(shapes, keep, remove)


@pytest.mark.slow
@hypothesis.settings(max_examples=600)
@hypothesis.given(
    shapes=kernel_shapes(),
    keep=st.sampled_from(DETERMINISTIC),
    remove=st.sampled_from(DETERMINISTIC),
)
def test_any_shape_goes_into_any_shape_at_length(shapes, keep, remove):
    check_any_shape_into_any_shape(shapes, keep, remove)


@hypothesis.settings(max_examples=15)
@hypothesis.given(shapes=kernel_shapes(), pad=st.sampled_from(["zero", "init"]))
def test_the_shuffle_and_random_choice_keep_shape_and_finiteness(shapes, pad):
    source, target = (normal(seed, shape) for seed, shape in enumerate(shapes))
    fitted = fit(jax.random.key(1), source, target, keep="random", pad=pad, pool="max")
    assert fitted.shape == target.shape
    assert np.isfinite(fitted).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [((5, 2, 3), (3, 3, 2, 3)), ((3, 3, 2, 3), (5, 2, 3)), ((3, 3, 3, 2, 3), (2, 2, 3))],
)
def test_kernels_of_other_ranks_fit_too(key, source, target):
    fitted = fit(key, normal(0, source), normal(1, target))
    assert fitted.shape == target
    assert np.isfinite(fitted).all()
    assert np.count_nonzero(fitted) > 0


def test_the_shuffle_only_moves_channels(key):
    source = normal(0, (3, 3, 4, 5))
    fitted = np.asarray(fit(key, source, source))
    assert not np.array_equal(fitted, source)
    for o in range(5):
        filters = [every_slice(source[..., other, None]) for other in range(5)]
        assert every_slice(fitted[..., o, None]) in filters


def test_more_inputs_than_16_bits_can_count(key):
    source = np.zeros((1, 1, 70_000, 2), np.float32)
    source[0, 0, -3:, 0] = 1, 2, 3
    target = np.zeros((1, 1, 3, 2), np.float32)
    fitted = rules.variance(key, source, target, keep="max", shuffle=False)
    np.testing.assert_array_equal(fitted, source[:, :, -3:])


def test_padding_by_init_is_drawn_at_the_scale_of_he(key):
    source = np.zeros((1, 1, 30, 40), np.float32)
    fitted = np.array(fit(key, source, np.ones((5, 5, 30, 40)), pad="init", shuffle=False))
    assert (fitted[2, 2] == 0).all()
    border = np.delete(fitted.reshape(25, -1), 12, axis=0)
    assert border.std() == pytest.approx(np.sqrt(2 / (40 * 25)), rel=0.02)


def test_variance_ranks_before_it_rounds(key):
    # In bfloat16 the two variances would be equal, and the tie would keep channel 1 as the larger.
    source = jnp.stack([jnp.array([1.002, -1.002]), jnp.array([1.0, -1.0])], axis=-1)[:, None, :]
    fitted = fit(key, source, jnp.zeros((2, 1, 1), jnp.bfloat16), keep="max", shuffle=False)
    assert fitted.dtype == jnp.bfloat16
    precise = fit(key, source, jnp.zeros((2, 1, 1)), keep="max", shuffle=False)
    np.testing.assert_array_equal(precise, source[:, :, :1])


# Larger and smaller in either channel, and in space, alone and together.
SHAPES = [
    ((3, 3, 6, 4), (5, 5, 4, 6)),
    ((3, 3, 4, 6), (3, 3, 6, 4)),
    ((3, 3, 9, 8), (3, 3, 4, 5)),
    ((3, 3, 9, 4), (3, 3, 12, 5)),
    ((5, 5, 9, 8), (3, 3, 4, 5)),
    ((5, 5, 9, 8), (3, 3, 4, 12)),
    ((1, 1, 9, 8), (3, 3, 4, 5)),
    ((1, 1, 9, 8), (1, 1, 4, 12)),
    ((1, 1, 9, 8), (1, 1, 12, 5)),
    ((7, 6), (5, 9)),
]


@pytest.mark.parametrize("keep", ["interleaved", "random"])
@pytest.mark.parametrize(("source", "target"), SHAPES, ids=str)
def test_variance_is_the_same_under_jit(key, source, target, keep):
    source, target = normal(0, source), normal(1, target)
    fitted = rules.variance(key, source, target, keep=keep)
    np.testing.assert_array_equal(fitted, fit(key, source, target, keep=keep))


@pytest.mark.parametrize("remove", ["random", "max"])
@pytest.mark.parametrize(("source", "target"), SHAPES, ids=str)
def test_what_a_cpu_leaves_to_numpy_is_the_same_on_the_device(
    key, monkeypatch, source, target, remove
):
    source, target = jnp.asarray(normal(0, source)), jnp.asarray(normal(1, target))
    expected = rules.variance(key, source, target, remove=remove)
    for module in (selection, variance_rule):
        monkeypatch.setattr(module, "in_memory", lambda array: array)
    fitted = rules.variance(key, source, target, remove=remove)
    np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize(
    "settings", [{"keep": "maxVar"}, {"remove": "all"}, {"pad": "same"}, {"pool": "sum"}], ids=str
)
def test_unknown_options_are_refused_with_what_is_known(key, settings):
    kernel = np.zeros((1, 1, 1, 1))
    (name,) = settings
    with pytest.raises(OptionError, match=f"{name}=.* expected one of"):
        rules.variance(key, kernel, kernel, **settings)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([1, 2, 3, 4], [0, 0], [2, 3]),
        ([1, 2, 3], [0, 0], [1, 2]),
        ([1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 0, 0]),
        ([1, 2], [7, 8], [1, 2]),
    ],
)
def test_clip_copies_the_centre(key, source, target, expected):
    fitted = rules.clip(key, jnp.array(source, jnp.float32), jnp.array(target, jnp.float32))
    assert fitted.tolist() == expected


def test_equal_rules_bind_equal():
    bound = bind(rules.variance)
    assert bound == bind(functools.partial(rules.variance, keep="interleaved"))
    assert hash(bound) == hash(bind(bound))
    assert bound != bind(functools.partial(rules.variance, keep="max"))
    assert "keep='interleaved'" in str(bound)


def test_later_settings_win_when_partials_are_nested():
    inner = functools.partial(rules.variance, keep="max", pool="max")
    settings = dict(bind(functools.partial(inner, keep="min")).settings)
    assert (settings["keep"], settings["pool"]) == ("min", "max")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("variance", "expected a function"),
        (functools.partial(rules.variance, 0), "positional arguments"),
        (functools.partial(rules.variance, keep=[]), "cannot be hashed"),
    ],
)
def test_what_is_no_rule_is_refused(rule, message):
    with pytest.raises(OptionError, match=message):
        bind(rule)
