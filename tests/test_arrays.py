"""The same orders and random words in NumPy and in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlv_jax.arrays import ascending, largest, noise


@pytest.mark.parametrize("size", [1, 2, 33, 256, 700])
@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_the_order_is_the_stable_one(size, wrap):
    values = np.abs(np.random.default_rng(0).normal(size=(6, size))).astype(np.float32)
    values[:, ::3] = values[:, :1]
    values[1] = 0.0
    values[2, : size // 2] = np.nan
    values[3, -1:] = np.inf
    values[4] = np.round(values[4], 1)
    order = ascending(wrap(values))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, np.argsort(values, stable=True))
    words = np.random.default_rng(1).integers(0, 1 << 32, (3, size), np.uint32)
    np.testing.assert_array_equal(ascending(wrap(words)), np.argsort(words, stable=True))


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_of_equal_values_the_earlier_are_kept(xp):
    worth = xp.asarray(np.array([1, 3, 2, 3, 2, 0], np.float32))
    assert [largest(worth, count, xp).tolist() for count in (1, 2, 3, 4)] == [
        [1],
        [1, 3],
        [1, 2, 3],
        [1, 2, 3, 4],
    ]


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1 << 15,), (7, 20_000)], ids=str)
def test_random_words_are_the_same_under_jit_and_differ_by_key(key, shape):
    words = noise(key, shape, np)
    assert (words.shape, words.dtype) == (shape, np.uint32)
    traced = jax.jit(lambda key: noise(key, shape, jnp))(key)
    np.testing.assert_array_equal(traced, words)
    assert not np.array_equal(noise(jax.random.fold_in(key, 1), shape, np), words)


def test_a_longer_draw_begins_with_the_shorter(key):
    np.testing.assert_array_equal(noise(key, (40_000,), np)[:5], noise(key, (5,), np))


def test_random_words_are_fair(key):
    words = noise(key, (40_000,), np)
    assert len(set(words.tolist())) > 39_990
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 8).mean(axis=0)
    assert np.abs(bits - 0.5).max() <= 6 * 0.5 / np.sqrt(160_000)
