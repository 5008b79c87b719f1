"""Convolutions of any settings, against NumPy: values and gradients are equal."""

import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

import tlv_jax
from tests import oracles
from tests.helpers import value_and_gradients, weights_of

LAYOUTS = {
    1: (("NWC", "WIO", "NWC"), ("NCW", "OIW", "NWC")),
    2: (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "IOHW", "NHWC")),
    3: (("NDHWC", "DHWIO", "NDHWC"), ("NCDHW", "OIDHW", "NCDHW")),
}


@st.composite
def any_convolution(draw):
    """Settings of `lax.conv_general_dilated`, and the shapes of its operands, channels last."""
    axes = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    sizes, kernel = each(1, 6), each(1, 4)
    groups, reads = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))
    writes = groups * draw(st.integers(1, 2))
    settings = {
        "window_strides": each(1, 3),
        "padding": tuple(zip(each(-1, 3), each(-1, 3), strict=True)),
        "lhs_dilation": each(1, 2),
        "rhs_dilation": each(1, 2),
        "feature_group_count": groups,
        "dimension_numbers": draw(st.sampled_from(LAYOUTS[axes])),
    }
    batch = draw(st.integers(1, 3))
    return settings, (batch, *sizes, groups * reads), (*kernel, reads, writes)


def in_layout(array, spec, wanted):
    return np.transpose(array, [spec.index(letter) for letter in wanted])


@pytest.mark.parametrize("examples", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_convolution_and_its_gradients(examples):
    @hypothesis.settings(max_examples=examples)
    @given(any_convolution())
    def check(drawn):
        settings, inputs, kernel = drawn
        lhs_spec, rhs_spec, out_spec = settings["dimension_numbers"]
        spatial = "DHW"[-(len(inputs) - 2) :]
        channels_last = f"N{spatial}C"
        # Small integers, of which float32 sums are exact.
        rng = np.random.default_rng(0)
        plain = [rng.integers(-3, 4, shape).astype(np.float32) for shape in (inputs, kernel)]
        lhs = in_layout(plain[0], channels_last, lhs_spec)
        rhs = in_layout(plain[1], f"{spatial}IO", rhs_spec)

        def fn(lhs, rhs):
            return lax.conv_general_dilated(lhs, rhs, **settings)

        try:
            result = jax.eval_shape(fn, lhs, rhs)
        except ValueError:  # padding that crops everything
            assume(False)
            raise
        assume(math.prod(result.shape))
        # Not XLA itself: it is wrong for some negative paddings.
        weights = in_layout(weights_of(result), out_spec, channels_last)
        value, of_inputs, of_kernel = oracles.convolution(*plain, weights, settings)
        expected = (
            in_layout(value, channels_last, out_spec),
            in_layout(of_inputs, channels_last, lhs_spec),
            in_layout(of_kernel, f"{spatial}IO", rhs_spec),
        )
        actual = jax.jit(lambda *args: value_and_gradients(tlv_jax.cpu_convolutions(fn), *args))(
            lhs, rhs
        )
        for new, old in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(new, old)

    check()


def test_paddings_that_xla_gets_wrong():
    images = jnp.arange(16.0).reshape(1, 2, 2, 4)
    kernel = jnp.arange(32.0).reshape(1, 2, 4, 4) % 7

    def fn(images, kernel, padding=((0, 0), (2, 0))):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=layout)

    def padded_here(images, kernel):
        images = jnp.pad(images, ((0, 0), (0, 0), (2, 0), (0, 0)))
        return fn(images, kernel, "VALID")

    expected = value_and_gradients(padded_here, images, kernel)
    actual = value_and_gradients(tlv_jax.cpu_convolutions(fn), images, kernel)
    chex.assert_trees_all_equal(actual, expected)
