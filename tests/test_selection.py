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
    drawn, wanted = None, selection.drawn_size(size, places, **choice)
    if wanted is not None:
        drawn = np.random.default_rng(0).permuted(np.tile(np.arange(wanted), (6, 1)), axis=1).T
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


@pytest.mark.parametrize("size", [1, 2, 33, 256, 700, 1024])
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


@pytest.mark.parametrize("by_runs", [True, False])
@pytest.mark.parametrize("size", [255, 257, 512, 700])
def test_whichever_way_is_faster_gives_the_same_order(monkeypatch, by_runs, size):
    monkeypatch.setattr(selection, "_runs_are_faster", lambda: by_runs)
    values = np.random.default_rng(0).integers(0, 50, (5, size)).astype(np.float32)
    order = selection.argsort(jnp.asarray(values))
    np.testing.assert_array_equal(order, np.argsort(values, stable=True))
