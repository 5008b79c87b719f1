"""The rules that copy channels as they are: clip, full, magnitude, trace, uniform."""

from pathlib import Path

import jax
import numpy as np
import pytest
from trees import KERNEL_SHAPES, normal

from tlv_jax import rules

RECORDED = np.load(Path(__file__).parent / "golden" / "iat_rules.npz")
TRACED = np.load(Path(__file__).parent / "golden" / "iat_trace.npz")
NAMES = sorted(name.removesuffix(".src") for name in RECORDED if name.endswith(".src"))
COPYING = [rules.Clip(), rules.Full(), rules.Magnitude(), rules.Trace(), rules.Uniform()]


def to_flax(kernel):
    """`[O, I, *spatial] -> [*spatial, I, O]`."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0) if kernel.ndim > 1 else kernel


def test_all_recorded_answers_are_there():
    assert sum(name.startswith("clip") for name in NAMES) >= 4
    assert sum(name.startswith("magnitude") for name in NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_answers_are_met(key, name):
    # The published code ranks inputs over all outputs, whether it is asked to or not.
    rule = rules.Magnitude() if name.startswith("magnitude") else rules.Clip()
    source, target, expected = (
        to_flax(RECORDED[f"{name}.{part}"]) for part in ("src", "dst", "out")
    )
    np.testing.assert_array_equal(rule(key, source, target), expected)


@pytest.mark.parametrize("layer", ["narrower.0", "norms.0", "mixed.0", "mixed.4"])
def test_trace_fits_a_kernel_of_which_nothing_is_known_as_recorded(key, layer):
    # The first of a network, and one whose source has fewer inputs.
    case, number = layer.split(".")
    source, target, expected = (
        to_flax(TRACED[f"{case}.{part}.{number}.weight"]) for part in ("src", "dst", "out")
    )
    np.testing.assert_array_equal(rules.Trace()(key, source, target), expected)


@pytest.mark.parametrize("rule", COPYING, ids=str)
@pytest.mark.parametrize(("source", "target"), KERNEL_SHAPES, ids=str)
def test_every_value_comes_from_one_of_the_two(key, rule, source, target):
    source, target = normal(0, *source), normal(1, *target)
    fitted = rule(key, source, target)
    assert set(fitted.ravel()) <= set(source.ravel()) | set(target.ravel())
    assert set(fitted.ravel()) & set(source.ravel())


@pytest.mark.parametrize("rule", COPYING, ids=str)
def test_equal_shapes_are_copied(key, rule):
    source, target = normal(0, 3, 3, 4, 5), normal(1, 3, 3, 4, 5)
    np.testing.assert_array_equal(rule(key, source, target), source)


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
    fitted = rules.Clip()(key, np.array(source, np.float32), np.array(target, np.float32))
    assert fitted.tolist() == expected


@pytest.mark.parametrize(("source", "target"), KERNEL_SHAPES, ids=str)
def test_full_leaves_nothing_of_the_target(key, source, target):
    source, target = normal(0, *source), normal(1, *target)
    fitted = rules.Full()(key, source, target)
    assert set(fitted.ravel()) <= set(source.ravel())
    overlap = tuple(map(min, source.shape, target.shape))
    middle, given = (
        array[
            tuple(
                slice((n - m) // 2, (n - m) // 2 + m)
                for n, m in zip(array.shape, overlap, strict=True)
            )
        ]
        for array in (fitted, source)
    )
    np.testing.assert_array_equal(middle, given)


def test_full_draws_from_its_key():
    source, target = normal(0, 3, 3, 2, 2), normal(1, 3, 3, 9, 9)
    first, again, other = (rules.Full()(jax.random.key(s), source, target) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("n", "m"), [(8, 3), (5, 4), (7, 1), (4, 4)])
def test_uniform_spaces_channels_evenly(key, n, m):
    source, target = np.arange(n, dtype=np.float32), np.zeros(m, np.float32)
    expected = [round(i * (n - 1) / max(m - 1, 1)) for i in range(m)]
    np.testing.assert_array_equal(rules.Uniform()(key, source, target), expected)


@pytest.mark.parametrize("rule", [rules.Magnitude, rules.Trace])
def test_the_smallest_may_be_kept(key, rule):
    source, target = normal(0, 1, 1, 1, 6), normal(1, 1, 1, 1, 2)
    fitted = rule(keep="min")(key, source, target)
    order = np.argsort(np.abs(source[0, 0, 0]))[:2]
    np.testing.assert_array_equal(fitted[0, 0, 0], source[0, 0, 0, np.sort(order)])


def test_magnitude_may_rank_inputs_over_the_kept_outputs(key):
    source = np.array([[5, 0, 1], [4, 9, 1]], np.float32)  # [I, O]
    target = np.zeros((1, 1), np.float32)
    # Output 0 and 1 weigh 9 each, the first is kept; of the inputs, 1 weighs most over all
    # outputs, but 0 does over the kept one.
    assert rules.Magnitude()(key, source, target)[0, 0] == 4
    assert rules.Magnitude(constrained=True)(key, source, target)[0, 0] == 5
