import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from importers.layouts import CONV, DENSE, SAME, dense_after_flatten

LAYOUTS = {"vector": (SAME, 1), "conv": (CONV, 4), "dense": (DENSE, 2)}


@pytest.mark.parametrize("name", LAYOUTS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=20)
def test_layouts_undo_each_other(name, data):
    layout, rank = LAYOUTS[name]
    shape = data.draw(st.lists(st.integers(0, 4), min_size=rank, max_size=rank))
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(layout.to_torch(layout.to_flax(array)), array)
    np.testing.assert_array_equal(layout.to_flax(layout.to_torch(array)), array)


def test_conv_moves_each_axis_to_its_place():
    kernel = np.zeros((8, 3, 5, 7))  # [O, I, H, W]
    kernel[6, 2, 4, 1] = 1
    assert CONV.to_flax(kernel).shape == (5, 7, 3, 8)
    assert CONV.to_flax(kernel)[4, 1, 2, 6] == 1


@pytest.mark.parametrize(("channels", "side"), [(4, 3), (1, 2), (5, 1)])
def test_dense_after_flatten_gives_the_same_product_for_either_order(channels, side):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(channels, side, side))
    kernel = rng.normal(size=(6, channels * side * side))
    layout = dense_after_flatten(channels)
    converted = layout.to_flax(kernel)
    np.testing.assert_allclose(
        image.transpose(1, 2, 0).reshape(-1) @ converted, kernel @ image.reshape(-1)
    )
    np.testing.assert_array_equal(layout.to_torch(converted), kernel)


def test_layouts_tell_shapes_without_arrays():
    struct = jax.ShapeDtypeStruct((49 * 512, 4096), np.float32)
    assert jax.eval_shape(dense_after_flatten(512).to_torch, struct).shape == (4096, 49 * 512)
