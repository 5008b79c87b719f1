"""What `fit` is given: images, sources and settings of every kind, and which of them it refuses."""

import copy
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import normal, small_fn, small_network

import tlv_jax
from tlv_jax.errors import NonFiniteSourceError, OptionError, ParameterTreeError, TLVError

IMAGES = normal(1, 16, 8, 8, 3)
SOURCE, TARGET = small_network(0, 16, 24), small_network(50, 8, 12)


def kernels_of(params):
    return {name: params[name]["kernel"] for name in ("stem", "block", "out")}


def check_fitted(params, network=TARGET):
    """Checks a result: a tree of the target's type, finite, with other kernels."""
    chex.assert_trees_all_equal_structs(params, network.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, network.params)
    chex.assert_tree_all_finite(params)
    for name, kernel in kernels_of(params).items():
        assert not np.allclose(kernel, network.params[name]["kernel"]), name


@pytest.fixture(scope="module")
def fitted():
    return tlv_jax.fit(SOURCE, TARGET, IMAGES)


def test_every_conv_is_fitted_and_the_head_stays(fitted):
    check_fitted(fitted)
    chex.assert_trees_all_equal(fitted["fc"], TARGET.params["fc"])


def test_a_report_refuses_the_parameters_of_another_network():
    for params in (SOURCE.params, {"stem": TARGET.params["stem"]}):
        with pytest.raises(ParameterTreeError, match="new_params: expected a tree as fit returned"):
            tlv_jax.fit_report(SOURCE, TARGET, IMAGES, params)


def test_nothing_is_written_into_what_is_given(fitted):
    src, dst, images = copy.deepcopy((SOURCE.params, TARGET.params, IMAGES))
    networks = (
        dataclasses.replace(SOURCE, params=src),
        dataclasses.replace(TARGET, params=dst),
    )
    for leaf in (*jax.tree.leaves((src, dst)), images):
        leaf.flags.writeable = False
    chex.assert_trees_all_equal(tlv_jax.fit(*networks, images), fitted)
    chex.assert_trees_all_equal((src, dst, images), (SOURCE.params, TARGET.params, IMAGES))


def test_the_same_key_gives_the_same_answer():
    settings = tlv_jax.Fit(rows=128)  # of 1024 places
    first, again, other = (
        tlv_jax.fit(SOURCE, TARGET, IMAGES, settings=settings, key=jax.random.key(seed))
        for seed in (3, 3, 4)
    )
    chex.assert_trees_all_equal(first, again)
    check_fitted(other)
    assert not np.allclose(first["stem"]["kernel"], other["stem"]["kernel"])


def test_images_may_be_on_a_device_and_in_batches(fitted):
    settings = tlv_jax.Fit(batch_size=5)
    again = tlv_jax.fit(SOURCE, TARGET, jnp.asarray(IMAGES), settings=settings)
    chex.assert_trees_all_close(again, fitted, rtol=1e-3, atol=1e-4)


def test_one_image_of_another_size_than_the_traced_one():
    check_fitted(tlv_jax.fit(SOURCE, TARGET, normal(2, 1, 12, 10, 3)))


def test_a_report_tells_what_was_fitted(fitted):
    report = tlv_jax.fit_report(SOURCE, TARGET, IMAGES, fitted)
    assert [row.target for row in report.rows] == ["stem", "block", "out"]
    assert all(0 < row.fitted <= 1 for row in report.rows)
    # By other parameters, the same goals are met worse.
    other = tlv_jax.fit_report(SOURCE, TARGET, IMAGES, TARGET.params)
    for row, before in zip(report.rows, other.rows, strict=True):
        assert before.fitted < row.fitted
        assert before.std_after == before.std_before == row.std_before
    assert "3 of 3 convs fitted" in str(report)


def test_the_source_can_see_images_of_its_own(fitted):
    enlarged = jax.image.resize(IMAGES, (16, 16, 16, 3), "linear")
    same = tlv_jax.fit(SOURCE, TARGET, IMAGES, src_images=enlarged)
    chex.assert_trees_all_close(same, fitted, rtol=1e-3, atol=1e-4)
    other = tlv_jax.fit(SOURCE, TARGET, IMAGES, src_images=normal(7, 16, 16, 16, 3))
    assert not np.allclose(other["out"]["kernel"], fitted["out"]["kernel"], atol=1e-2)


def test_a_target_of_gray_images_needs_the_source_to_see_others():
    params = copy.deepcopy(TARGET.params)
    params["stem"]["kernel"] = params["stem"]["kernel"][:, :, :1]
    gray = IMAGES.mean(-1, keepdims=True)
    dst = tlv_jax.trace(small_fn, params, gray[:1])
    with pytest.raises(TLVError, match="src_images"):
        tlv_jax.fit(SOURCE, dst, gray)
    check_fitted(tlv_jax.fit(SOURCE, dst, gray, src_images=np.repeat(gray, 3, -1)), dst)


def test_a_source_of_one_image_size_is_not_given_larger_ones_in_silence():
    def fixed(params, images):
        return small_fn(params, images.reshape(len(images), 192).reshape(-1, 8, 8, 3))

    src = tlv_jax.trace(fixed, SOURCE.params, IMAGES[:1])
    with pytest.raises(TypeError) as raised:
        tlv_jax.fit(src, TARGET, IMAGES)
    assert "src was called with images of shape (16, 16, 16, 3)" in raised.value.__notes__[-1]
    check_fitted(tlv_jax.fit(src, TARGET, IMAGES, settings=tlv_jax.Fit(enlarge=1)))


def with_nan(array):
    return np.where(np.arange(len(array))[:, None, None, None] == 3, np.nan, array)


@pytest.mark.parametrize(
    ("images", "src_images", "message"),
    [
        (with_nan(IMAGES), None, "images: .*NaN"),
        (IMAGES, with_nan(IMAGES), "src_images: .*NaN"),
        (np.ones_like(IMAGES), None, "images"),
        (IMAGES[:0], None, "images"),
        (IMAGES, IMAGES[:7], "src_images.*7"),
        (IMAGES, IMAGES[0], "src_images"),
    ],
    ids=["nan", "nan of the source", "constant", "none", "fewer", "no source batch"],
)
def test_images_that_cannot_be_fitted_to_are_refused(images, src_images, message):
    with pytest.raises(TLVError, match=message):
        tlv_jax.fit(SOURCE, TARGET, images, src_images=src_images)


def test_a_source_with_nan_is_refused():
    params = copy.deepcopy(SOURCE.params)
    params["block"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteSourceError, match="block"):
        tlv_jax.fit(dataclasses.replace(SOURCE, params=params), TARGET, IMAGES)


def shapes_of(network):
    shapes = jax.eval_shape(lambda: network.params)
    return tlv_jax.trace(network.fn, shapes, IMAGES[:1])


@pytest.mark.parametrize(
    ("src", "dst", "error", "message"),
    [
        (SOURCE.params, TARGET, OptionError, "src: .*trace"),
        (SOURCE, TARGET.params, OptionError, "dst: .*trace"),
        (shapes_of(SOURCE), TARGET, ParameterTreeError, "src: .*Shape"),
        (SOURCE, shapes_of(TARGET), ParameterTreeError, "dst: .*Shape"),
        ([SOURCE, SOURCE], TARGET, OptionError, "src: expected one network"),
    ],
    ids=["bare source", "bare target", "source of shapes", "target of shapes", "mixture"],
)
def test_networks_that_cannot_be_run_are_refused(src, dst, error, message):
    with pytest.raises(error, match=message):
        tlv_jax.fit(src, dst, IMAGES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("penalty", -1.0),
        ("penalty", float("nan")),
        ("enlarge", 0),
        ("rows", 0),
        ("batch_size", 0),
        ("deviation", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(OptionError, match=rf"{name}={value}"):
        tlv_jax.fit(SOURCE, TARGET, IMAGES, settings=tlv_jax.Fit(**{name: value}))


def test_settings_may_be_numbers_of_numpy():
    settings = tlv_jax.Fit(penalty=np.float32(0.1), rows=np.int64(128))
    check_fitted(tlv_jax.fit(SOURCE, TARGET, IMAGES, settings=settings))


def test_a_key_that_is_none_is_refused():
    with pytest.raises(OptionError, match="key: expected one random key"):
        tlv_jax.fit(SOURCE, TARGET, IMAGES, key=0)


@pytest.mark.parametrize("traced", ["images", "src", "dst"])
def test_it_does_not_run_within_jit(traced):
    given = {"src": SOURCE.params, "dst": TARGET.params, "images": IMAGES}

    @jax.jit
    def fit(value):
        each = {**given, traced: value}
        src = dataclasses.replace(SOURCE, params=each["src"])
        dst = dataclasses.replace(TARGET, params=each["dst"])
        return tlv_jax.fit(src, dst, each["images"])

    with pytest.raises(TLVError, match=rf"{traced}: .* outside"):
        fit(given[traced])


def conv(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def pooled(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *[(1, 2, 2, 1)] * 2, "VALID") / 4


def head(x, kernel):
    return jax.nn.relu(x).mean((1, 2)) @ kernel


def test_gates_are_left_alone_where_no_norm_tells_them_from_other_convs():
    def fn(params, images):
        x = jax.nn.relu(conv(images, params["stem"]))
        gate = jax.nn.relu(conv(x.mean((1, 2), keepdims=True), params["squeeze"]))
        x = x * jax.nn.sigmoid(conv(gate, params["excite"]))
        return head(conv(x, params["out"]), params["fc"])

    shapes = {"stem": (3, 3, 3, 8), "squeeze": (1, 1, 8, 4), "excite": (1, 1, 4, 8)}
    shapes = {**shapes, "out": (3, 3, 8, 12), "fc": (12, 5)}
    params = {name: normal(n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    dst = tlv_jax.trace(fn, params, IMAGES[:1])
    report = tlv_jax.fit_report(SOURCE, dst, IMAGES, tlv_jax.fit(SOURCE, dst, IMAGES))
    assert [row.target for row in report.rows] == ["stem", "out"]


def test_a_state_may_begin_before_a_pooling():
    def plain(params, images):
        x = pooled(jax.nn.relu(conv(images, params["a"])))
        return head(conv(x, params["b"]), params["fc"])

    def residual(params, images):
        x = pooled(conv(images, params["stem"]))
        x = x + conv(jax.nn.relu(conv(x, params["expand"])), params["project"])
        return head(conv(x, params["last"]), params["fc"])

    given = {"a": normal(0, 3, 3, 3, 16), "b": normal(1, 3, 3, 16, 24), "fc": normal(2, 24, 5)}
    wanted = {"stem": normal(3, 3, 3, 3, 8), "expand": normal(4, 1, 1, 8, 16)}
    wanted = {**wanted, "project": normal(5, 1, 1, 16, 8), "last": normal(6, 1, 1, 8, 9)}
    wanted = {**wanted, "fc": normal(7, 9, 5)}
    src, dst = (
        tlv_jax.trace(fn, params, IMAGES[:1]) for fn, params in ((plain, given), (residual, wanted))
    )
    report = tlv_jax.fit_report(src, dst, IMAGES, tlv_jax.fit(src, dst, IMAGES))
    found = {row.target: row.source for row in report.rows}
    assert found == {"stem": "a", "expand": "b", "project": "b", "last": "b"}


def test_the_channels_that_matter_are_those_that_a_flat_head_reads_anywhere():
    def fn(params, images):
        x = jax.nn.relu(conv(images, params["conv"]))
        return x.reshape(len(x), -1) @ params["fc"]

    head = np.zeros((8, 8, 16, 5), np.float32)
    head[0, 0, 12:] = 1  # at the first place alone
    given = {"conv": normal(0, 3, 3, 3, 16), "fc": head.reshape(-1, 5)}
    wanted = {"conv": normal(1, 3, 3, 3, 4), "fc": normal(2, 256, 5)}
    src, dst = (tlv_jax.trace(fn, params, IMAGES[:1]) for params in (given, wanted))
    settings = tlv_jax.Fit(penalty=1e-9, enlarge=1)
    params = tlv_jax.fit(src, dst, IMAGES, settings=settings)
    np.testing.assert_allclose(params["conv"], given["conv"][..., 12:], rtol=1e-3, atol=1e-3)
