"""Figures of reports, masks and trainings show the numbers that they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import assert_readable, lines_of, texts_of
from matplotlib.collections import PolyCollection
from scipy import stats

import tlv_jax
from tlv_jax import FitReport, FittedLayer, LayerReport, TransferReport, plots
from tlv_jax.errors import OptionError
from tlv_jax.plots.looks import line_style

# As long as the names of ResNet152, and as many.
NAMES = [f"params/layer3.{block}/conv{number}" for block in range(52) for number in (1, 2, 3)]
GENERATOR = np.random.default_rng(0)


def transferred(pairs):
    rows = [
        LayerReport(name, "conv", (3, 3, 4, 4), (3, 3, 4, 4), "Clip()", 1.0, *pair)
        for name, pair in zip(NAMES, pairs, strict=False)
    ]
    norm = LayerReport("params/bn", "bn", (4,), (4,), "Clip()", 1.0, 0.0, 0.1)
    return TransferReport((*rows, norm), ())


def shown(figure, label):
    """The y of a label over all panels, in the order of the layers."""
    return [y for axes in figure.axes for data in lines_of(axes, label) for _, y in data]


@pytest.mark.parametrize("count", [3, 156])
def test_deviations_before_and_after(count):
    pairs = 10 ** GENERATOR.uniform(-3, 0, (count, 2))
    figure = plots.deviations(transferred(pairs))
    np.testing.assert_allclose(shown(figure, "before"), pairs[:, 0])
    np.testing.assert_allclose(shown(figure, "after"), pairs[:, 1])
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    names = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    shared = "params/" if count > 3 else "params/layer3.0/"
    assert names == [name.removeprefix(shared) for name in NAMES[:count]]  # no norm
    assert_readable(figure)


def test_kernels_of_zeros_are_marked_at_the_foot():
    figure = plots.deviations(transferred([(0.0, 0.1), (0.2, 0.3)]))
    (axes,) = figure.axes
    assert lines_of(axes, "before: 0")[0].tolist() == [[0, axes.get_ylim()[0]]]
    assert shown(figure, "before") == [0.2]
    assert "before: 0" in [text for text, _ in texts_of(figure)]


@pytest.mark.parametrize("count", [3, 156])
def test_how_well_each_layer_was_fitted(count):
    values = GENERATOR.uniform(-0.3, 1, count)
    rows = [
        FittedLayer(name, "conv", value, 1.0, 1.0)
        for name, value in zip(NAMES, values, strict=False)
    ]
    figure = plots.fitted(FitReport(tuple(rows)))
    np.testing.assert_allclose(shown(figure, "fitted"), values)
    words = f"{count} of {count} convs fitted, mean R² {values.mean():.2f}"
    assert words in [text for text, _ in texts_of(figure)]
    assert_readable(figure)


def test_layers_without_a_goal_and_far_below_zero_are_marked():
    values = (None, -30.0, 0.5)
    rows = [FittedLayer(n, "conv", v, 1.0, 1.0) for n, v in zip(NAMES, values, strict=False)]
    figure = plots.fitted(FitReport(tuple(rows)))
    (axes,) = figure.axes
    assert lines_of(axes, "no goal")[0].tolist() == [[0, 0]]
    assert lines_of(axes, "below -1")[0].tolist() == [[1, -1]]
    assert axes.get_ylim()[0] < -1
    assert {"no goal", "below -1"} <= {text for text, _ in texts_of(figure)}


@pytest.mark.parametrize("shape", [(4, 10), (64, 2048)])
def test_masks_are_those_that_a_crossover_draws(shape):
    key = jax.random.key(0)
    masks = tlv_jax.crossover(key, jnp.zeros(shape), jnp.ones(shape), 0.3)
    features, others = GENERATOR.standard_normal((2, *shape)).astype(np.float32)
    mixed = tlv_jax.crossover(key, features, others, 0.3)
    figure = plots.crossover(masks)
    drawn = np.concatenate([axes.images[0].get_array() for axes in figure.axes], axis=1)
    np.testing.assert_array_equal(drawn == 1, np.asarray(mixed) == others)
    assert figure.axes[0].images[0].get_cmap()(1.0)[:3] == (0, 0, 0)
    assert f"{np.mean(masks):.1%} of {shape[1]} features" in figure.get_suptitle()
    assert_readable(figure)


def test_curves_have_means_and_student_s_intervals():
    scores = GENERATOR.uniform(0.4, 0.9, (5, 12))
    figure = plots.curves({"transferred": scores, "he": scores[0]}, "balanced accuracy", 0.9)
    axes = figure.axes[0]
    (line,) = lines_of(axes, "transferred (5)")
    np.testing.assert_allclose(line[:, 0], np.arange(1, 13))
    np.testing.assert_allclose(line[:, 1], scores.mean(0))
    np.testing.assert_allclose(lines_of(axes, "he (1)")[0][:, 1], scores[0])
    (band,) = [each for each in axes.collections if isinstance(each, PolyCollection)]
    low, high = stats.t.interval(0.9, 4, scores.mean(0), stats.sem(scores))
    corners = band.get_paths()[0].vertices
    for epoch in range(12):
        sides = corners[corners[:, 0] == epoch + 1, 1]
        np.testing.assert_allclose([sides.min(), sides.max()], [low[epoch], high[epoch]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "balanced accuracy")
    assert "90% intervals" in axes.get_title("left")
    assert_readable(figure)


def test_lines_differ_without_their_colours():
    looks = [line_style(number) for number in range(32)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 32


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.deviations(TransferReport((), ())), "TransferReport has no layer"),
        (lambda: plots.fitted(FitReport(())), "FitReport has no layer"),
        (lambda: plots.crossover(np.full((2, 3), 0.5)), "zeros and ones"),
        (lambda: plots.crossover(np.ones(3)), r"got shape \(3,\)"),
        (lambda: plots.curves({}, "loss"), "got 0 runs"),
        (lambda: plots.curves({"he": [[1.0], [1.0, 2.0]]}, "loss"), "'he' is no array of numbers"),
        (lambda: plots.curves({"he": np.ones((2, 2, 2))}, "loss"), r"got \(2, 2, 2\)"),
        (lambda: plots.curves({"he": [1.0]}, "loss", 95), "confidence=95"),
    ],
)
def test_inputs_that_cannot_be_drawn_are_refused(draw, message):
    with pytest.raises(OptionError, match=message):
        draw()
