"""Kernels of other numbers of spatial axes: images into video, and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tlv_jax
from tlv_jax import methods, rules

pytestmark = pytest.mark.filterwarnings(
    "ignore::tlv_jax.UnknownOrderWarning", "ignore::tlv_jax.SimilarityWarning"
)


def conv(images, kernel):
    """`[B, *spatial, I], [*kernel, I, O] -> [B, *places, O]`, without padding."""
    spatial = "DHW"[-(images.ndim - 2) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    strides = (1,) * len(spatial)
    return lax.conv_general_dilated(images, kernel, strides, "VALID", dimension_numbers=layout)


def tree(*shape, seed=0):
    return {"conv": {"kernel": jax.random.normal(jax.random.key(seed), shape)}}


def constant(images, axes, size=5):
    """The images, repeated along new leading spatial axes."""
    new = tuple(range(1, axes + 1))
    shape = (len(images), *(size,) * axes, *images.shape[1:])
    return jnp.broadcast_to(jnp.expand_dims(images, new), shape)


RULES = [rules.Clip(), rules.Full(), rules.Uniform(), rules.Variance(), rules.Magnitude()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    ("source", "target"),
    [((3, 3), (3, 3, 3)), ((3, 3), (1, 3, 3)), ((3,), (2, 3)), ((3,), (4, 3, 3))],
)
def test_a_kernel_with_more_axes_does_the_same_where_images_are_constant(rule, source, target):
    src, dst = tree(*source, 4, 4), tree(*target, 4, 4, seed=1)
    rule = dataclasses.replace(rule, shuffle=False) if hasattr(rule, "shuffle") else rule
    new = tlv_jax.transfer(src, dst, method=dataclasses.replace(methods.BARE, rule=rule))
    if len(target) - len(source) == 2:  # the middle axis is one of the new
        kernel = jnp.broadcast_to(src["conv"]["kernel"] / 12, (4, 3, 3, 4, 4))
        np.testing.assert_allclose(new["conv"]["kernel"], kernel, rtol=1e-6)
    images = jax.random.normal(jax.random.key(2), (2, *(6,) * len(source), 4))
    volumes = constant(images, len(target) - len(source))
    expected = constant(conv(images, src["conv"]["kernel"]), len(target) - len(source), size=1)
    actual = conv(volumes, new["conv"]["kernel"])
    np.testing.assert_allclose(
        actual, jnp.broadcast_to(expected, actual.shape), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("source", "target"), [((3, 3, 3), (3, 3)), ((2, 3), (3,))])
def test_a_kernel_with_fewer_axes_does_the_same_where_images_were_constant(source, target):
    src, dst = tree(*source, 4, 4), tree(*target, 4, 4, seed=1)
    new = tlv_jax.transfer(src, dst)
    images = jax.random.normal(jax.random.key(2), (2, *(6,) * len(target), 4))
    expected = conv(constant(images, 1, size=source[0]), src["conv"]["kernel"])[:, 0]
    np.testing.assert_allclose(conv(images, new["conv"]["kernel"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["TLVFC", "DPIAT", "WEIGHT_SELECTION"])
def test_published_methods_give_images_to_video(name):
    src, dst = tree(5, 5, 3, 8), tree(3, 3, 3, 3, 6, seed=1)
    plan = tlv_jax.plan_transfer(src, dst, getattr(methods, name))
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), src, dst)
    jitted = jax.jit(lambda key: tlv_jax.apply_transfer(plan, key, src, dst))(jax.random.key(0))
    np.testing.assert_allclose(
        new["conv"]["kernel"], jitted["conv"]["kernel"], rtol=1e-5, atol=1e-6
    )
    first, *others = new["conv"]["kernel"]
    for other in others:  # all frames are alike
        np.testing.assert_array_equal(first, other)


def test_traced_networks_keep_their_channels_from_images_to_video():
    def network(spatial, seed):
        keys = jax.random.split(jax.random.key(seed))
        params = {
            name: jax.random.normal(key, (*spatial, 4, 4))
            for name, key in zip("ab", keys, strict=True)
        }
        return tlv_jax.trace(
            lambda params, x: conv(jax.nn.relu(conv(x, params["a"])), params["b"]),
            params,
            jnp.ones((1, *(8,) * len(spatial), 4)),
        )

    src, dst = network((3, 3), 0), network((3, 3, 3), 1)
    method = dataclasses.replace(methods.BARE, channels=tlv_jax.ConsistentChannels())
    new = tlv_jax.transfer(src, dst, method=method)
    images = jax.random.normal(jax.random.key(2), (1, 8, 8, 4))
    expected, actual = src.fn(src.params, images), dst.fn(new, constant(images, 1))
    np.testing.assert_allclose(actual, expected[:, None], rtol=1e-4, atol=1e-4)
    assert tlv_jax.similarity(src, dst) == 1
    assert "3x3x3" in str(tlv_jax.report(tlv_jax.plan_transfer(src, dst), src, dst, new))
