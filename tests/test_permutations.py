import chex
import jax
import numpy as np
import pytest

from tlv_jax import permutations
from tlv_jax.permutations import Draw

COLUMNS = 20_000


def drawn(words, *draws):
    """The permutations of each draw, `[N, M]`."""
    (arrays,) = permutations.permutations(np.asarray(words, np.uint32), (draws,))
    found = permutations.places(draws)
    return [
        np.asarray(arrays[at.array])[: draw.size, at.column : at.column + draw.columns]
        for draw, at in zip(draws, found, strict=True)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 33, 64, 100])
def test_permutations_are_permutations_and_fair(size):
    (columns,) = drawn([[3, 4]], Draw(0, size, COLUMNS, 0))
    expected = np.broadcast_to(np.arange(size)[:, None], columns.shape)
    np.testing.assert_array_equal(np.sort(columns, axis=0), expected)
    for place in {0, size // 2, size - 1}:
        assert_even(np.bincount(columns[place], minlength=size))


@pytest.mark.parametrize("size", [3, 5, 6, 8, 20])
def test_two_places_are_given_every_pair_alike(size):
    (columns,) = drawn([[1, 2]], Draw(0, size, COLUMNS, 0))
    for place, other in ((0, 1), (0, size - 1), (size // 2, size // 2 - 1)):
        counts = np.bincount(columns[place] * size + columns[other], minlength=size * size)
        assert_even(counts.reshape(size, size)[~np.eye(size, dtype=bool)])


def test_keys_of_many_layers_are_fair():
    words = jax.random.key_data(jax.random.split(jax.random.key(0), COLUMNS))
    arrays = drawn(words, *(Draw(layer, 7, 1, 2) for layer in range(COLUMNS)))
    columns = np.concatenate(arrays, axis=1)
    for place in (0, 3, 6):
        assert_even(np.bincount(columns[place], minlength=7))


def assert_even(counts):
    expected = COLUMNS / len(counts)
    assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)


def test_permutations_differ_by_key_column_and_salt():
    draws = drawn([[1, 2], [1, 3]], Draw(0, 50, 3, 0), Draw(1, 50, 3, 0), Draw(0, 50, 3, 1))
    columns = np.concatenate(draws, axis=1)
    assert len({column.tobytes() for column in columns.T}) == 9


DRAWS = (
    Draw(0, 3, 7, 1),
    Draw(1, 64, 100, 1),
    Draw(2, 64, 30, 2),
    Draw(2, 63, 65, 1),
    Draw(1, 40_000, 2, 1),
    Draw(0, 33, 1, 2),
)
WORDS = np.array([[1, 2], [3, 4], [5, 6]], np.uint32)


def test_a_draw_is_the_same_whatever_else_is_drawn():
    for draw, together in zip(DRAWS, drawn(WORDS, *DRAWS), strict=True):
        (alone,) = drawn(WORDS, draw)
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(np.sort(alone[:, 0]), np.arange(draw.size))


def test_traced_keys_draw_the_same():
    groups = DRAWS[:2], (), DRAWS[2:]
    traced = jax.jit(lambda words: list(permutations.permutations(words, groups)))(WORDS)
    chex.assert_trees_all_equal(traced, list(permutations.permutations(WORDS, groups)))


def test_groups_are_drawn_as_if_alone():
    first, none, second = permutations.permutations(WORDS, (DRAWS[:2], (), DRAWS[2:]))
    assert none == []
    for arrays, draws in ((first, DRAWS[:2]), (second, DRAWS[2:])):
        chex.assert_trees_all_equal([arrays], list(permutations.permutations(WORDS, (draws,))))


def test_nothing_is_drawn_where_nothing_is_wanted():
    assert list(permutations.permutations(WORDS, ((), ()))) == [[], []]
    assert permutations.places(()) == ()


def test_draws_of_many_sizes_share_a_program():
    drawn(WORDS, Draw(0, 33, 5, 0))
    compiled = permutations._permuted._cache_size()
    drawn(WORDS, Draw(0, 40, 7, 0))
    drawn(WORDS, Draw(0, 64, 8, 1))
    drawn(WORDS, Draw(0, 3, 3, 1), Draw(1, 20, 50, 0), Draw(2, 17, 14, 0))
    assert permutations._permuted._cache_size() == compiled
