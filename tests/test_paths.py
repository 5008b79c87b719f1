import equinox as eqx
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tlv_jax import ParameterTreeError
from tlv_jax.layers.paths import array_leaves, natural_key


def test_lists_and_dicts_give_paths():
    tree = {"b": [jnp.zeros(1), {"kernel": jnp.zeros(2)}], "a": jnp.zeros(3)}
    assert list(array_leaves(tree, name="t")) == ["a", "b/0", "b/1/kernel"]


def test_boxes_around_one_array_do_not_show(key):
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert set(array_leaves(state, name="t")) == {"kernel", "bias"}
    boxed = {"w": nn.Partitioned(jnp.zeros((2, 2)), names=("a", "b"))}
    assert list(array_leaves(boxed, name="t")) == ["w"]


def test_a_dict_in_the_place_of_a_box_does_not_show():
    kernel = jnp.zeros(2)
    assert list(array_leaves({"w": {"value": kernel}, "v": {"raw_value": kernel}}, name="t")) == [
        "v",
        "w",
    ]
    # A module may be called so.
    attention = {"query": kernel, "value": kernel}
    assert list(array_leaves(attention, name="t")) == ["query", "value"]
    assert list(array_leaves({"value": kernel}, name="t")) == ["value"]
    taken = {"a": {"b": {"value": kernel}}, "a/b": kernel}
    assert list(array_leaves(taken, name="t")) == ["a/b/value", "a/b"]


def test_tuples_as_keys_are_paths():
    tree = flax.traverse_util.flatten_dict({"a": {"kernel": jnp.zeros(1)}, "b": jnp.zeros(1)})
    assert set(tree) == {("a", "kernel"), ("b",)}
    assert list(array_leaves(tree, name="t")) == ["a/kernel", "b"]


def test_tensors_of_torch_are_refused_by_their_path():
    torch = pytest.importorskip("torch")
    with pytest.raises(ParameterTreeError, match=r"src: leaf 'a' is a torch\.Tensor.*numpy"):
        array_leaves({"a": torch.zeros(1)}, name="src")


def test_leaves_that_are_no_arrays_are_passed_over(key):
    module = eqx.nn.Sequential([eqx.nn.Linear(2, 3, key=key), eqx.nn.Lambda(jax.nn.relu)])
    assert list(array_leaves(module, name="t")) == ["layers/0/weight", "layers/0/bias"]


def test_numbers_sort_by_value():
    paths = ["layer10.0/conv2", "layer2.11/conv1", "layer2.2/conv1", "fc", "layer2.2/conv10"]
    expected = ["fc", "layer2.2/conv1", "layer2.2/conv10", "layer2.11/conv1", "layer10.0/conv2"]
    assert sorted(paths, key=natural_key) == expected


@pytest.mark.parametrize("tree", [{}, None, {"a": "text", "b": {}}])
def test_a_tree_without_arrays_is_refused(tree):
    with pytest.raises(ParameterTreeError, match="src: expected a pytree of arrays"):
        array_leaves(tree, name="src")


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ParameterTreeError, match="'a/b'"):
        array_leaves({"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)}, name="t")
