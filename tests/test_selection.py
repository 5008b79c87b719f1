import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from tlv_jax import selection
from tlv_jax.selection import SELECTIONS

SIZES = [(size, count) for size in range(1, 10) for count in range(1, size + 1)]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize(("size", "count"), SIZES)
def test_chosen_channels_are_distinct_and_valid(key, name, size, count):
    chosen = np.asarray(SELECTIONS[name](key, jnp.arange(size, dtype=jnp.float32), count))
    assert chosen.shape == (count,)
    assert len(set(chosen.tolist())) == count
    assert chosen.min() >= 0
    assert chosen.max() < size


@pytest.mark.parametrize("name", ["max", "min", "interleaved", "two_tailed"])
def test_choice_agrees_with_the_oracle(key, name):
    variance = np.random.default_rng(0).random(9, np.float32)
    for count in range(1, 10):
        chosen = SELECTIONS[name](key, jnp.asarray(variance), count)
        assert chosen.tolist() == oracles.choose(variance, count, name)


def test_ties_go_by_position(key):
    assert SELECTIONS["min"](key, jnp.zeros(5), 3).tolist() == [0, 1, 2]


def test_random_choice_reaches_every_channel_alike(key):
    import jax

    keys = jax.random.split(key, 4000)
    chosen = jax.vmap(lambda key: SELECTIONS["random"](key, jnp.zeros(5), 2))(keys)
    counts = np.bincount(np.asarray(chosen).ravel(), minlength=5)
    # 8000 draws over 5 channels: 1600 each, standard deviation 31.
    assert np.abs(counts - 1600).max() < 150


@pytest.mark.parametrize("size", [1, 2, 33, 1024])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
def test_the_order_is_the_stable_one(size, wrap):
    values = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    values[:, ::3] = values[:, :1]
    values[1] = 0.0
    values[1, ::2] = -0.0
    values[2, : size // 2] = np.nan
    values[3, -1:] = np.inf
    order = wrap(selection.argsort)(jnp.asarray(values))
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(order, jnp.argsort(values))


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_random_orders_are_permutations_and_fair(size):
    orders = np.asarray(selection.random_order(jax.random.key(0), (20_000, size)))
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(size), orders.shape))
    expected = 20_000 / size
    for place in {0, size - 1}:
        counts = np.bincount(orders[:, place], minlength=size)
        assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)
