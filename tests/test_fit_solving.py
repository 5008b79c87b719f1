"""The kernels that a fit solves for, beside a slow regression, filter by filter."""

import dataclasses
import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

import tlv_jax


@dataclasses.dataclass(frozen=True)
class Conv:
    """One kind of convolution, and the images that it reads."""

    kernel: tuple[int, ...]  # [*spatial, I, O]
    size: tuple[int, ...]  # of the images
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __call__(self, images, kernel):
        spatial = "XYZ"[: len(self.strides)]
        return lax.conv_general_dilated(
            images,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )

    @property
    def channels(self):
        return self.kernel[-2] * self.groups


CONVS = {
    "plain": Conv((3, 3, 4, 6), (6, 5), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "pointwise": Conv((1, 1, 4, 6), (6, 5), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "grouped": Conv((3, 3, 2, 6), (6, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    "depthwise": Conv((3, 3, 1, 6), (6, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "strided": Conv((3, 3, 4, 6), (7, 6), (2, 1), ((1, 2), (0, 1)), (1, 1)),
    "dilated": Conv((3, 3, 4, 6), (7, 6), (1, 1), ((2, 2), (1, 2)), (2, 1)),
    "cropped": Conv((3, 3, 4, 6), (7, 6), (1, 1), ((-1, 1), (1, -1)), (1, 1)),
    "of a line": Conv((5, 4, 6), (13,), (2,), ((2, 2),), (1,)),
    "of a volume": Conv((2, 2, 2, 3, 6), (3, 4, 3), (1, 1, 1), ((1, 0),) * 3, (1, 1, 1)),
}


def network_of(conv, images, seed):
    """A conv that reads the images, ReLU, and a head; drawn at random."""
    generator = np.random.default_rng(seed)
    outputs = conv.kernel[-1]
    params = {
        "conv": {"kernel": normal(generator, conv.kernel), "bias": normal(generator, (outputs,))},
        "head": {"kernel": normal(generator, (outputs, 3))},
    }

    def apply(params, images):
        x = conv(images, params["conv"]["kernel"])
        x = jax.nn.relu(x + along(params["conv"]["bias"], x))
        return x.mean(range(1, x.ndim - 1)) @ params["head"]["kernel"]

    return tlv_jax.trace(apply, params, images)


def along(vector, x):
    return jnp.expand_dims(vector, range(x.ndim - 1))


def normal(generator, shape):
    return generator.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize("kind", CONVS)
def test_a_conv_is_solved_for_as_by_a_slow_regression(kind, count):
    conv = CONVS[kind]
    images = normal(np.random.default_rng(1), (count, *conv.size, conv.channels))
    src, dst = network_of(conv, images, 2), network_of(conv, images, 3)
    settings = tlv_jax.Fit(penalty=0.3, enlarge=1)
    new = tlv_jax.fit(src, dst, images, settings=settings)["conv"]
    goal = np.asarray(conv(images, src.params["conv"]["kernel"])) + src.params["conv"]["bias"]
    prior = tlv_jax.transfer(src, dst)["conv"]["kernel"]
    kernel, bias = oracles.fitted_conv(images, goal, prior, conv, 0.3)
    np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["bias"], bias, rtol=1e-3, atol=1e-3)


def deep(params, images):
    """Convs and batch norms in a row, and a head."""
    x = images
    for number in range(3):
        same = functools.partial(Conv, dilation=(1, 1), padding=((1, 1), (1, 1)))
        layer = params[f"layer{number}"]
        conv = same(layer["conv"]["kernel"].shape, (), (1, 1))
        x = conv(x, layer["conv"]["kernel"])
        norm = {name: along(vector, x) for name, vector in layer["norm"].items()}
        x = (x - norm["mean"]) * lax.rsqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"]
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ params["head"]["kernel"]


def deep_params(seed, width):
    generator = np.random.default_rng(seed)
    params = {"head": {"kernel": normal(generator, (width, 3))}}
    for number, inputs in enumerate((3, width, width)):
        params[f"layer{number}"] = {
            "conv": {"kernel": normal(generator, (3, 3, inputs, width))},
            "norm": {
                "mean": normal(generator, (width,)),
                "var": 20 + 10 * generator.random(width, np.float32),
                "scale": 1 + generator.random(width, np.float32),
                "bias": normal(generator, (width,)),
            },
        }
    return params


def networks(images, widths=(8, 8)):
    params = [deep_params(seed, width) for seed, width in enumerate(widths)]
    return [tlv_jax.trace(deep, each, images[:1]) for each in params]


def test_norms_get_the_statistics_of_the_images_and_kernels_the_deviation_that_was_asked_for():
    images = normal(np.random.default_rng(1), (32, 6, 6, 3))
    src, dst = networks(images)
    new = tlv_jax.fit(src, dst, images, settings=tlv_jax.Fit(deviation=0.25))
    conv = Conv((3, 3, 3, 8), (), (1, 1), ((1, 1), (1, 1)), (1, 1))
    written = conv(images, new["layer0"]["conv"]["kernel"])
    norm = new["layer0"]["norm"]
    np.testing.assert_allclose(norm["mean"], written.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm["var"], written.var((0, 1, 2)), rtol=1e-3)
    for number in range(3):
        assert np.std(new[f"layer{number}"]["conv"]["kernel"]) == pytest.approx(0.25, rel=1e-3)
    np.testing.assert_array_equal(new["head"]["kernel"], dst.params["head"]["kernel"])


def test_the_deviation_of_the_kernels_changes_nothing_that_is_computed():
    images = normal(np.random.default_rng(1), (32, 6, 6, 3))
    src, dst = networks(images)
    small, large = (
        tlv_jax.fit(src, dst, images, settings=tlv_jax.Fit(deviation=deviation))
        for deviation in (0.2, 2.0)
    )
    np.testing.assert_allclose(deep(small, images), deep(large, images), rtol=1e-2, atol=1e-3)


def test_the_report_tells_what_the_network_computes():
    images = normal(np.random.default_rng(1), (16, 6, 6, 3))
    src, dst = networks(images)
    settings = tlv_jax.Fit(enlarge=1, penalty=1e-6)
    new = tlv_jax.fit(src, dst, images, settings=settings)
    report = tlv_jax.fit_report(src, dst, images, new, settings=settings)
    assert [row.target for row in report.rows] == [f"layer{n}/conv" for n in range(3)]
    assert [row.source for row in report.rows] == [f"layer{n}/conv" for n in range(3)]
    # A copy: everything that the source computes, before its activation functions too.
    assert min(row.fitted for row in report.rows) > 0.999
    conv = Conv((3, 3, 3, 8), (), (1, 1), ((1, 1), (1, 1)), (1, 1))
    for params, deviation in (
        (dst.params, report.rows[0].std_before),
        (new, report.rows[0].std_after),
    ):
        norm = params["layer0"]["norm"]
        written = np.asarray(conv(images, params["layer0"]["conv"]["kernel"])) - norm["mean"]
        normed = written / np.sqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"]
        assert deviation == pytest.approx(np.std(normed), rel=1e-3)
    assert "3 of 3 convs fitted" in str(report)
    # Before the fit, the target computes nothing of the sort.
    before = tlv_jax.fit_report(src, dst, images, dst.params, settings=settings)
    assert max(row.fitted for row in before.rows) < 0.5


def test_images_that_were_not_fitted_to_tell_what_was_learned_by_heart():
    images, others = normal(np.random.default_rng(1), (2, 24, 6, 6, 3))
    src, dst = networks(images, widths=(8, 6))
    # One place of each image, so that there are fewer rows than weights of a filter.
    settings = tlv_jax.Fit(rows=24, penalty=1e-6)
    new = tlv_jax.fit(src, dst, images, settings=settings)
    seen, held_out = (
        tlv_jax.fit_report(src, dst, each, new, settings=settings).rows[0].fitted
        for each in (images, others)
    )
    assert held_out < seen - 0.1


def test_memory_is_bounded_by_the_rows():
    images = normal(np.random.default_rng(1), (32, 48, 48, 3))
    src, dst = networks(images)
    every = 32 * 48 * 48 * 9 * 8 * 8  # bytes of all windows of the second conv, in float64
    tracemalloc.start()
    tlv_jax.fit(src, dst, images, settings=tlv_jax.Fit(rows=1024, enlarge=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < every / 2


def test_a_half_precision_network_stays_one():
    images = normal(np.random.default_rng(1), (16, 6, 6, 3))
    src, dst = networks(images)
    halved = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), dst.params)
    half = tlv_jax.trace(deep, halved, jnp.asarray(images[:1], jnp.bfloat16))
    new = tlv_jax.fit(src, half, jnp.asarray(images, jnp.bfloat16), src_images=images)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    exact = tlv_jax.fit(src, dst, images, src_images=images)
    wanted, got = deep(exact, images), deep(new, jnp.asarray(images, jnp.bfloat16))
    np.testing.assert_allclose(got.astype(np.float32), wanted, atol=0.1 * np.abs(wanted).max())


def standardized(params, images):
    """Two convs, of which the first divides its kernel by its deviation, and a head."""
    same = {"padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    conv = Conv((3, 3, 3, 8), (), (1, 1), **same)
    first = params["first"]["kernel"]
    x = jax.nn.relu(conv(images, first / jnp.std(first)))
    x = jax.nn.relu(conv(x, params["second"]["kernel"]))
    return x.mean((1, 2)) @ params["head"]["kernel"]


def test_a_kernel_that_the_network_changes_itself_is_not_solved_for():
    images = normal(np.random.default_rng(1), (16, 6, 6, 3))
    shapes = {"first": (3, 3, 3, 8), "second": (3, 3, 8, 8), "head": (8, 3)}
    src, dst = (
        tlv_jax.trace(
            standardized,
            {name: {"kernel": normal(generator, shape)} for name, shape in shapes.items()},
            images[:1],
        )
        for generator in map(np.random.default_rng, range(2))
    )
    settings = tlv_jax.Fit(enlarge=1)
    new = tlv_jax.fit(src, dst, images, settings=settings)
    transferred = np.asarray(tlv_jax.transfer(src, dst)["first"]["kernel"])
    np.testing.assert_array_equal(np.asarray(new["first"]["kernel"]), transferred)
    first, second = tlv_jax.fit_report(src, dst, images, new, settings=settings).rows
    assert (first.source, second.source) == (None, "second")
    # The second conv was solved for what the first one writes in the network.
    kernel = np.asarray(new["first"]["kernel"])
    conv = Conv((3, 3, 3, 8), (), (1, 1), ((1, 1), (1, 1)), (1, 1))
    written = np.asarray(conv(images, kernel / kernel.std()))
    assert first.std_after == pytest.approx(written.std(), rel=1e-3)


def test_unlike_networks_are_fitted_without_a_warning():
    images = normal(np.random.default_rng(1), (16, 6, 6, 3))
    src, _ = networks(images)
    _, dst = networks(images, widths=(8, 40))
    with pytest.warns(tlv_jax.SimilarityWarning):
        tlv_jax.transfer(src, dst)
    tlv_jax.fit(src, dst, images)  # warnings are errors here
