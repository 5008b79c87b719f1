"""Figures of plans and kernels show what their inputs say, and can be read."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import trees
from drawn import assert_readable, texts_of

import tlv_jax
from tlv_jax import methods, models, plots, rules
from tlv_jax.errors import OptionError, PackageError, PlanMismatchError
from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.matching.scores import shape_scores
from tlv_jax.types import LayerPair

KEY = jax.random.key(3)


def network(widths, seed, size=3):
    """Convs of these widths and a dense layer, traced with arrays."""
    params, inputs = {}, 3
    for number, width in enumerate(widths):
        params[f"conv{number}"] = trees.normal(seed + number, size, size, inputs, width)
        inputs = width
    params["fc"] = trees.normal(seed, inputs, 5)

    def fn(params, x):
        for number in range(len(widths)):
            kernel = params[f"conv{number}"]
            dimensions = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params["fc"]

    return tlv_jax.trace(fn, params, jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))


SOURCE = network((8, 16, 24), 0)
TARGET = network((8, 4, 12, 32), 10)
VARIANCE = dataclasses.replace(methods.TLVFC, rule=rules.Variance(keep="max"))


@pytest.fixture(scope="module")
def large():
    """A plan from ResNet50 into ResNet152, and its networks."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    networks = [
        tlv_jax.trace(models.create(name, num_classes=10).apply, trees.shapes(name), image)
        for name in ("resnet50", "resnet152")
    ]
    return tlv_jax.plan_transfer(*networks), *networks


def upwards(source, target):
    """A matching whose lines cross: the last of the source for the first of the target."""
    sources = flatten_blocks(source)[::-1]
    return [LayerPair(*pair) for pair in zip(sources, flatten_blocks(target), strict=False)]


@pytest.mark.parametrize(
    "method", [methods.TLVFC, dataclasses.replace(methods.BARE, match=upwards)]
)
def test_a_plan_has_a_line_for_each_pair_between_its_labels(method):
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, method)
    figure = plots.plan(plan, SOURCE, TARGET)
    axes = figure.axes[0]
    heights = {(text.get_text(), text.get_ha()): text.get_position()[1] for text in axes.texts}
    left = [heights[path, "right"] for path in ("conv0", "conv1", "conv2")]
    assert left == sorted(left)  # the source in its own order, from the top down
    lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 2}
    assert len(lines) == len(plan.layer_pairs)
    for pair in plan.layer_pairs:
        line = lines[pair.target.path]
        ends = heights[pair.source.path, "right"], heights[pair.target.path, "left"]
        assert tuple(line.get_ydata()) == ends
        score = shape_scores([pair.source], [pair.target])[0, 0]
        assert line.get_linestyle() == ("-" if score >= 0.5 else "--" if score >= 0.25 else ":")
    shades = {
        shape_scores([p.source], [p.target])[0, 0]: np.mean(lines[p.target.path].get_color()[:3])
        for p in plan.layer_pairs
    }
    assert [shades[score] for score in sorted(shades)] == sorted(shades.values(), reverse=True)
    assert_readable(figure)


def test_a_plan_marks_what_becomes_of_layers_without_a_source():
    drawn = plots.plan(tlv_jax.plan_transfer(SOURCE, TARGET, methods.TLVFC), SOURCE, TARGET)
    kept = plots.plan(tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE), SOURCE, TARGET)
    for figure, marker, words in ((drawn, "s", "drawn from"), (kept, "o", "stays as it is")):
        last = figure.axes[0].lines[-1]
        assert (last.get_ydata()[0], last.get_marker()) == (4, marker)
        assert any(words in text for text, _ in texts_of(figure))
    words = "4 of 5 layers of the target get the weights of 3 of 4 layers of the source"
    assert words in [text for text, _ in texts_of(kept)]


@pytest.mark.parametrize(
    "kinds",
    [
        ("conv", "dense"),
        pytest.param(("conv", "dense", "norm"), marks=pytest.mark.slow),
    ],
    ids=["kernels", "all"],
)
def test_a_plan_of_resnet152_can_be_read(large, kinds):
    plan, source, target = large
    figure = plots.plan(plan, source, target, kinds)
    assert_readable(figure)
    assert figure.bbox.height <= 2000
    wanted = [layer for layer in target.layers if layer.kind in kinds]
    right = [t for axes in figure.axes for t in axes.texts if t.get_ha() == "left"]
    assert len(right) - sum(text.get_text() == "target" for text in right) == len(wanted)
    lines = {line.get_label() for axes in figure.axes for line in axes.lines}
    assert lines >= {p.target.path for p in plan.layer_pairs if p.target.kind in kinds}


def test_a_plan_can_be_drawn_of_layers_that_get_nothing():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE)
    texts = [text for text, _ in texts_of(plots.plan(plan, SOURCE, TARGET, kinds=("dense",)))]
    assert "0 of 1 layers of the target get the weights of 0 of 1 layers of the source" in texts


def test_long_names_keep_their_ends():
    long = "network/~/" + 5 * "group_of_blocks_"

    def renamed(network):
        layers = {
            f"{long}{name}/kernels_of_conv": kernel for name, kernel in network.params.items()
        }

        def fn(params, x):
            return network.fn(
                {name: params[key] for name, key in zip(network.params, layers, strict=True)}, x
            )

        return tlv_jax.trace(fn, layers, jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))

    source, target = renamed(SOURCE), renamed(TARGET)
    plan = tlv_jax.plan_transfer(source, target, VARIANCE)
    new = tlv_jax.apply_transfer(plan, KEY, source, target)
    path = f"{long}conv1/kernels_of_conv"
    figures = [
        plots.plan(plan, source, target),
        plots.variances(plan, path, source, target),
        plots.first_kernels(plan, source, target, new),
        plots.deviations(tlv_jax.report(plan, source, target, new)),
    ]
    for figure in figures:
        assert_readable(figure)
        assert any("…" in text and "conv" in text for text, _ in texts_of(figure))


def test_a_plan_of_a_mixture_is_drawn():
    sources = [SOURCE, network((4, 4, 12, 32), 20)]
    plan = tlv_jax.plan_transfer(sources, TARGET, methods.BARE)
    figure = plots.plan(plan, sources, TARGET)
    assert {pair.source.path[:2] for pair in plan.layer_pairs} == {"0/", "1/"}
    assert {"0/conv0", "1/conv3"} <= {text for text, _ in texts_of(figure)}


def test_a_plan_of_other_networks_is_refused():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE)
    with pytest.raises(PlanMismatchError, match="'conv3', which src and dst have not"):
        plots.plan(plan, SOURCE, SOURCE)
    with pytest.raises(PlanMismatchError, match="of the kinds norm, got none"):
        plots.plan(plan, SOURCE, TARGET, kinds=("norm",))


def filled(figure, word):
    """The ranks, the values and whether they are filled, of all panels."""
    points = [
        (rank, value, line.get_label() == word)
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() in (word, f"not {word}")
        for rank, value in line.get_xydata()
    ]
    ranks, values, chosen = map(np.array, zip(*sorted(points), strict=True))
    np.testing.assert_array_equal(ranks, np.arange(len(ranks)))
    return values, chosen


def test_filters_that_are_kept_are_those_that_arrive():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, VARIANCE)  # conv1: 16 filters to 4
    new = tlv_jax.apply_transfer(plan, KEY, SOURCE, TARGET)["conv1"]
    figure = plots.variances(plan, "conv1", SOURCE, TARGET, KEY)
    values, kept = filled(figure, "kept")
    variances = SOURCE.params["conv1"].reshape(-1, 16).var(0)
    np.testing.assert_allclose(values, np.sort(variances), rtol=1e-5)
    arrived = [
        any(
            set(new[..., place].ravel()) <= set(SOURCE.params["conv1"][..., n].ravel())
            for place in range(4)
        )
        for n in np.argsort(variances)
    ]
    np.testing.assert_array_equal(kept, arrived)
    assert "filters of conv1 (source): 4 of 16 are kept" in [text for text, _ in texts_of(figure)]
    assert_readable(figure)


def test_filters_that_are_replaced_by_the_transfer_with_this_key_are_filled():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, VARIANCE)  # conv3: 24 filters to 32, at random
    before = TARGET.params["conv3"]
    order = np.argsort(before.reshape(-1, 32).var(0))
    seen = []
    for key in (None, KEY):
        new = tlv_jax.apply_transfer(
            plan, jax.random.key(0) if key is None else key, SOURCE, TARGET
        )
        replaced = (new["conv3"] != before).any((0, 1, 2))
        chosen = filled(plots.variances(plan, "conv3", SOURCE, TARGET, key), "replaced")[1]
        np.testing.assert_array_equal(chosen, replaced[order])
        seen.append(chosen)
    assert not np.array_equal(*seen)


def test_thousands_of_filters_can_be_read():
    source, target = network((2048,), 0, size=1), network((512,), 1, size=1)
    plan = tlv_jax.plan_transfer(source, target, VARIANCE)
    figure = plots.variances(plan, "conv0", source, target)
    assert filled(figure, "kept")[1].sum() == 512
    assert filled(figure, "kept")[1][-512:].all()
    assert_readable(figure)


def test_variances_of_other_plans_are_refused():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE)
    with pytest.raises(OptionError, match=r"chooses filters by variance.*got Clip\(\)"):
        plots.variances(plan, "conv1", SOURCE, TARGET)
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, VARIANCE)
    with pytest.raises(PlanMismatchError, match="fits no kernel of 'fc'"):
        plots.variances(plan, "fc", SOURCE, TARGET)
    bare = dataclasses.replace(SOURCE, params=jax.eval_shape(lambda: SOURCE.params))
    with pytest.raises(PlanMismatchError, match="src: expected values at 'conv1', got a jax"):
        plots.variances(plan, "conv1", bare, TARGET)


def test_first_kernels_are_drawn_around_mid_grey_at_scales_of_their_own():
    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE)
    new = tlv_jax.apply_transfer(plan, KEY, SOURCE, TARGET)
    figure = plots.first_kernels(plan, SOURCE, TARGET, new)
    kernels = SOURCE.params["conv0"], TARGET.params["conv0"], new["conv0"]
    for axes, kernel in zip(figure.axes, kernels, strict=True):
        scale = np.abs(kernel).max()
        picture = axes.images[0].get_array()
        np.testing.assert_allclose(picture[:3, 4:7], 0.5 + kernel[..., 1] / (2 * scale), atol=1e-6)
        assert f"8 of 8 filters, ±{scale:.2g}" in axes.get_title()
    assert_readable(figure)


def test_plots_say_how_to_install_matplotlib_and_leave_pyplot_alone(monkeypatch):
    from matplotlib import pyplot

    plan = tlv_jax.plan_transfer(SOURCE, TARGET, methods.BARE)
    plots.plan(plan, SOURCE, TARGET)
    plots.curves({"he": [0.1, 0.2]}, "accuracy")
    assert pyplot.get_fignums() == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PackageError, match=r"pip install 'tlv-jax\[plots\]'"):
        plots.plan(plan, SOURCE, TARGET)
