import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from tlv_jax import selection
from tlv_jax.selection import RANKS, SELECTIONS

SIZES = [(size, count) for size in range(1, 10) for count in range(1, size + 1)]


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(("size", "count"), SIZES)
def test_chosen_ranks_are_distinct_ascending_and_valid(name, size, count):
    ranks = RANKS[name](size, count)
    assert ranks.shape == (count,)
    assert (np.diff(ranks) > 0).all()
    assert ranks[0] >= 0
    assert ranks[-1] < size


@pytest.mark.parametrize("name", RANKS)
def test_choice_agrees_with_the_oracle(name):
    variance = np.random.default_rng(0).random(9, np.float32)
    order = np.asarray(selection.argsort(jnp.asarray(variance)))
    for count in range(1, 10):
        chosen = order[RANKS[name](9, count)]
        assert chosen.tolist() == oracles.choose(variance, count, name)


@pytest.mark.parametrize("remove", SELECTIONS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "places"), [(9, 4), (4, 9), (5, 5), (1, 3), (3, 1)])
def test_each_place_is_given_another_number(key, remove, shuffle, size, places):
    choice = {"remove": remove, "shuffle": shuffle}
    drawn = selection.draw(key, size, places, 6, salt=0, **choice)
    order = None
    if remove != "random" and size < places:
        order = jnp.arange(places)[::-1, None]
    given = selection.numbers_of_places(order, drawn, size, (places, 6), **choice)
    assert given.shape == (places, 6)
    count = places if size >= places else selection.placed(size, remove)
    for column in np.asarray(given).T:
        found = column[column >= 0]
        assert len(set(found.tolist())) == len(found) == count
        assert found.max() < size
    if size == places and not shuffle:
        np.testing.assert_array_equal(given[:, 0], np.arange(places))


def test_random_choice_reaches_every_channel_alike(key):
    # 4000 draws of 2 of 5 channels: 1600 each, standard deviation 31.
    chosen = np.asarray(selection.permutations(key, 5, 4000))[:2, :4000]
    counts = np.bincount(chosen.ravel(), minlength=5)
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


COLUMNS = 20_000


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 33, 64, 100])
def test_permutations_are_permutations_and_fair(size):
    drawn = np.asarray(selection.permutations(jax.random.key(0), size, COLUMNS))[:size, :COLUMNS]
    expected = np.broadcast_to(np.arange(size)[:, None], drawn.shape)
    np.testing.assert_array_equal(np.sort(drawn, axis=0), expected)
    for place in {0, size // 2, size - 1}:
        assert_even(np.bincount(drawn[place], minlength=size))


@pytest.mark.parametrize("size", [3, 5, 6, 8, 20])
def test_two_places_are_given_every_pair_alike(size):
    drawn = np.asarray(selection.permutations(jax.random.key(1), size, COLUMNS))[:size, :COLUMNS]
    for place, other in ((0, 1), (0, size - 1), (size // 2, size // 2 - 1)):
        counts = np.bincount(drawn[place] * size + drawn[other], minlength=size * size)
        assert_even(counts.reshape(size, size)[~np.eye(size, dtype=bool)])


def assert_even(counts):
    expected = COLUMNS / len(counts)
    assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)


def test_permutations_differ_by_key_column_and_salt(key):
    other = jax.random.fold_in(key, 1)
    draws = [
        selection.permutations(key, 50, 3),
        selection.permutations(other, 50, 3),
        selection.permutations(key, 50, 3, salt=1),
    ]
    columns = np.concatenate([np.asarray(draw)[:50, :3] for draw in draws], axis=1)
    assert len({column.tobytes() for column in columns.T}) == 9


def test_sizes_within_a_power_of_two_share_a_program(key):
    selection.permutations(key, 33, 5)
    compiled = selection._permutations._cache_size()
    selection.permutations(key, 40, 7)
    selection.permutations(key, 64, 8, salt=1)
    assert selection._permutations._cache_size() == compiled
