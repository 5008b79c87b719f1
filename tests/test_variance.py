"""The variance rule: held to the recorded answers of the published code, and to a slow oracle."""

import json
from pathlib import Path
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from trees import normal

from tlv_jax import rules
from tlv_jax.rules.variance import Select, ranks

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "variance_transfer.json").read_text())
ANSWERED = [case for case in CASES if case["status"] == "ok"]
FAILED = [case for case in CASES if case["status"] != "ok"]
SHAPES = sorted({(*case["src"], *case["dst"]) for case in ANSWERED})
RECORDED = np.load(GOLDEN / "variance_transfer.npz")
NAMES = {"maxVar": "max", "minVar": "min", "interLeaved": "interleaved", "twoTailed": "two_tailed"}
CHOICES = list(get_args(Select))
RANKED = CHOICES[:-1]  # but `random`


def recorded(case):
    """Source, target and answer as `[H, W, I, O]`."""
    return [
        RECORDED[f"{case['name']}.{part}"].transpose(2, 3, 1, 0) for part in ("src", "dst", "out")
    ]


def rule_of(case):
    keep, remove = NAMES[case["keep"]], NAMES[case["remove"]]
    return rules.Variance(keep, remove, case["pad"], case["pool"], shuffle=False)


def test_all_recorded_answers_are_there():
    assert len(ANSWERED) == 158


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case["name"])
def test_the_recorded_answers_are_met(key, case):
    source, target, expected = recorded(case)
    fitted = rule_of(case)(key, source, target)
    np.testing.assert_allclose(fitted, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_the_recorded_answers_are_met_under_jit(key, shapes):
    cases = [case for case in ANSWERED if (*case["src"], *case["dst"]) == shapes]

    @jax.jit  # one program for all: compiling each by itself takes three times as long
    def fit(kernels):
        return [rule_of(case)(key, *pair) for case, pair in zip(cases, kernels, strict=True)]

    fitted = fit([recorded(case)[:2] for case in cases])
    for case, kernel in zip(cases, fitted, strict=True):
        np.testing.assert_allclose(
            kernel, recorded(case)[2], rtol=1e-6, atol=1e-6, err_msg=case["name"]
        )


@pytest.mark.parametrize("case", FAILED, ids=lambda case: case["name"])
def test_it_succeeds_where_the_published_code_fails(key, case):
    shapes = [(*size, i, o) for o, i, *size in (case["src"], case["dst"])]
    source, target = (normal(seed, *shape) for seed, shape in enumerate(shapes))
    rule = rule_of(case | {"pad": "zero", "pool": "avg"})
    expected = oracles.variance_rule(source, target, rule.keep, rule.remove)
    np.testing.assert_array_equal(rule(key, source, target), expected)


@st.composite
def kernel_shapes(draw):
    ndim = draw(st.integers(1, 3))
    spatial = st.tuples(*[st.integers(1, 7 if ndim < 3 else 4)] * ndim)
    channels = st.integers(1, 9)
    return [(*draw(spatial), draw(channels), draw(channels)) for _ in range(2)]


def every_slice(kernel):
    """All spatial slices of a kernel, `[I * O, *spatial]`, as bytes."""
    flat = np.moveaxis(kernel.reshape(*kernel.shape[:-2], -1), -1, 0)
    return {np.ascontiguousarray(one).tobytes() for one in flat}


def check_any_shape_into_any_shape(shapes, keep, remove):
    source, target = (normal(seed, *shape) for seed, shape in enumerate(shapes))
    fitted = rules.Variance(keep, remove, shuffle=False)(jax.random.key(0), source, target)
    expected = oracles.variance_rule(source, target, keep, remove)
    np.testing.assert_allclose(fitted, expected, rtol=1e-5, atol=1e-6)
    if source.shape[:-2] == target.shape[:-2]:
        assert every_slice(fitted) <= every_slice(source) | every_slice(target)


any_shapes = hypothesis.given(
    shapes=kernel_shapes(), keep=st.sampled_from(RANKED), remove=st.sampled_from(RANKED)
)


@hypothesis.settings(max_examples=100)
@any_shapes
def test_any_shape_goes_into_any_shape(shapes, keep, remove):
    check_any_shape_into_any_shape(shapes, keep, remove)


@pytest.mark.slow
@hypothesis.settings(max_examples=3000)
@any_shapes
def test_any_shape_goes_into_any_shape_at_length(shapes, keep, remove):
    check_any_shape_into_any_shape(shapes, keep, remove)


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    shapes=kernel_shapes(), keep=st.sampled_from(CHOICES), remove=st.sampled_from(CHOICES)
)
def test_whatever_is_drawn_comes_from_one_of_the_two(shapes, keep, remove):
    source, target = (normal(seed, *shape) for seed, shape in enumerate(shapes))
    fitted = rules.Variance(keep, remove, pool="max")(jax.random.key(1), source, target)
    assert fitted.shape == target.shape
    assert set(fitted.ravel()) <= {0} | set(source.ravel()) | set(target.ravel())
    assert set(fitted.ravel()) & set(source.ravel())


# Larger and smaller in either channel, and in space, alone and together.
RESIZED = [
    ((3, 3, 6, 4), (5, 5, 4, 6)),
    ((3, 3, 4, 6), (3, 3, 6, 4)),
    ((3, 3, 9, 4), (3, 3, 12, 5)),
    ((5, 5, 9, 8), (3, 3, 4, 5)),
    ((5, 5, 9, 8), (3, 3, 4, 12)),
    ((1, 1, 9, 8), (3, 3, 4, 5)),
    ((1, 1, 9, 8), (1, 1, 4, 12)),
    ((1, 1, 9, 8), (1, 1, 12, 5)),
    ((7, 6), (5, 9)),
]
DRAWING = [
    rules.Variance(),
    rules.Variance(keep="random", remove="max", pad="init"),
    rules.Variance(keep="random", remove="random", pad="init", pool="max", shuffle=False),
]


@pytest.mark.parametrize(("source", "target"), RESIZED, ids=str)
def test_the_same_is_drawn_under_jit(key, source, target):
    source, target = normal(0, *source), normal(1, *target)
    fit = jax.jit(lambda *arguments: [rule(*arguments) for rule in DRAWING])
    for rule, fitted in zip(DRAWING, fit(key, source, target), strict=True):
        np.testing.assert_allclose(fitted, rule(key, source, target), rtol=1e-6, atol=1e-6)


SIZES = [(size, count) for size in range(1, 10) for count in range(1, size + 1)]


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize(("size", "count"), SIZES)
def test_chosen_ranks_are_distinct_ascending_and_valid(name, size, count):
    taken = ranks(name, size, count)
    assert taken.shape == (count,)
    assert (np.diff(taken) > 0).all()
    assert taken[0] >= 0
    assert taken[-1] < size
    variance = normal(0, size) ** 2
    chosen = np.argsort(variance)[taken]
    assert chosen.tolist() == oracles.choose(variance, count, name)


@pytest.mark.parametrize("remove", CHOICES)
@pytest.mark.parametrize("keep", CHOICES)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "places"), [(9, 4), (4, 9), (5, 5), (1, 3), (3, 1), (3, 8)])
def test_no_channel_comes_to_two_places(key, keep, remove, shuffle, size, places):
    rule = rules.Variance(keep, remove, shuffle=shuffle)
    count = min(size, places)
    if size < places and remove == "two_tailed":
        count = oracles.placed(size, remove)
    # The weights of the source number its outputs, and then its inputs, from 1.
    numbers = np.broadcast_to(np.arange(1.0, size + 1, dtype=np.float32), (1, 1, 6, size))
    fitted = rule(key, numbers, np.zeros((1, 1, 6, places), np.float32))
    found = fitted[0, 0, 0][fitted[0, 0, 0] > 0]
    assert (fitted == fitted[:, :, :1]).all()
    assert len(set(found)) == len(found) == count
    fitted = rule(key, numbers.swapaxes(2, 3), np.zeros((1, 1, places, 6), np.float32))
    for filter_ in fitted[0, 0].T:
        assert len(set(filter_[filter_ > 0])) == np.count_nonzero(filter_) == count


def test_without_shuffle_equal_shapes_are_copied(key):
    source, target = normal(0, 3, 3, 4, 5), normal(1, 3, 3, 4, 5)
    np.testing.assert_array_equal(rules.Variance(shuffle=False)(key, source, target), source)


def test_the_shuffle_only_moves_channels(key):
    source = normal(0, 3, 3, 4, 5)
    fitted = rules.Variance()(key, source, source)
    assert not np.array_equal(fitted, source)
    filters = [every_slice(source[..., o, None]) for o in range(5)]
    moved = [filters.index(every_slice(fitted[..., o, None])) for o in range(5)]
    assert sorted(moved) == list(range(5))


def test_the_shuffle_is_unlike_for_unlike_filters_and_keys(key):
    kernel = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None], (1, 1, 8, 6))
    shuffled = [rules.Variance()(key, kernel, kernel)[0, 0] for key in jax.random.split(key)]
    columns = np.concatenate(shuffled, axis=1)
    np.testing.assert_array_equal(np.sort(columns, axis=0), np.sort(kernel[0, 0].repeat(2, 1), 0))
    assert len({column.tobytes() for column in columns.T}) == 12


COLUMNS = 20_000


def assert_even(counts):
    expected = COLUMNS / len(counts)
    assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 33])
def test_every_place_and_pair_of_places_is_given_all_channels_alike(key, size):
    source = np.broadcast_to(np.arange(size, dtype=np.float32)[:, None], (1, 1, size, COLUMNS))
    columns = rules.Variance()(key, source, source)[0, 0].astype(int)
    np.testing.assert_array_equal(np.sort(columns, axis=0), source[0, 0])
    for place in {0, size // 2, size - 1}:
        assert_even(np.bincount(columns[place], minlength=size))
    if size <= 8:
        counts = np.bincount(columns[0] * size + columns[-1], minlength=size * size)
        assert_even(counts.reshape(size, size)[~np.eye(size, dtype=bool)])


def test_random_choice_reaches_every_channel_alike():
    # The published code's never reaches the last.
    source = np.arange(1.0, 6, dtype=np.float32)[:, None].repeat(COLUMNS, 1)[None, None]
    target = np.zeros((1, 1, 2, COLUMNS), np.float32)
    fitted = rules.Variance(keep="random", shuffle=False)(jax.random.key(2), source, target)
    assert_even(np.bincount(fitted[0, 0, 1].astype(int), minlength=6)[1:])


def test_more_inputs_than_16_bits_can_count(key):
    source = np.zeros((1, 1, 70_000, 2), np.float32)
    source[0, 0, -3:, 0] = 1, 2, 3
    target = np.zeros((1, 1, 3, 2), np.float32)
    rule = rules.Variance(keep="max", shuffle=False)
    np.testing.assert_array_equal(rule(key, source, target), source[:, :, -3:])


def test_padding_by_init_is_drawn_at_the_scale_of_he(key):
    source, target = np.zeros((1, 1, 30, 40), np.float32), np.ones((5, 5, 30, 40), np.float32)
    fitted = rules.Variance(pad="init", shuffle=False)(key, source, target)
    assert (fitted[2, 2] == 0).all()
    border = np.delete(fitted.reshape(25, -1), 12, axis=0)
    assert border.std() == pytest.approx(np.sqrt(2 / (40 * 25)), rel=0.02)


@pytest.mark.parametrize("wrap", [lambda rule: rule, jax.jit], ids=["plain", "jit"])
def test_it_ranks_before_it_rounds(key, wrap):
    # In bfloat16 the two variances would be equal, and the tie would keep channel 1 as the larger.
    source = np.array([[[1.002, 1.0]], [[-1.002, -1.0]]], np.float32)
    rule = wrap(rules.Variance(keep="max", shuffle=False))
    fitted = rule(key, source, np.zeros((2, 1, 1), jnp.bfloat16))
    assert fitted.dtype == jnp.bfloat16
    precise = rule(key, source, np.zeros((2, 1, 1), np.float32))
    np.testing.assert_array_equal(precise, source[:, :, :1])
