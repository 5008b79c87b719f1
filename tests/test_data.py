import itertools

import jax
import numpy as np
import pytest

from train.data import (
    LabelledImages,
    eval_batches,
    stratified_split,
    stratified_subset,
    train_order,
)
from train.errors import DataError


@pytest.mark.parametrize("shares", [(0.7, 0.15), (0.85,), (0.5, 0.5)])
def test_a_split_covers_all_rows_once_with_the_same_shares_of_each_class(shares):
    labels = np.random.default_rng(0).permutation([0] * 300 + [1] * 100)
    parts = stratified_split(labels, shares, seed=1)
    assert len(parts) == len(shares) + 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    for part, share in zip(parts, shares, strict=False):
        assert (labels[part] == 0).sum() == round(300 * share)
        assert (labels[part] == 1).sum() == round(100 * share)


def test_a_split_depends_on_its_seed_alone():
    labels = np.arange(50) % 3
    first, again, other = (stratified_split(labels, (0.5,), seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


LABELS = np.random.default_rng(0).permutation([0] * 300 + [1] * 95 + [2] * 5)


@pytest.mark.parametrize(
    ("count", "counts"),
    [(3, [1, 1, 1]), (4, [2, 1, 1]), (40, [30, 9, 1]), (80, [60, 19, 1]), (400, [300, 95, 5])],
)
def test_a_subset_has_the_same_share_of_each_class_and_one_row_at_least(count, counts):
    rows = stratified_subset(LABELS, count, seed=1)
    assert len(set(rows.tolist())) == len(rows) == count
    assert np.bincount(LABELS[rows]).tolist() == counts


def test_a_subset_is_a_part_of_every_larger_one():
    rows = [set(stratified_subset(LABELS, count, seed=1)) for count in range(3, 401)]
    assert all(small < large for small, large in itertools.pairwise(rows))


def test_a_subset_depends_on_its_seed_alone():
    first, again, other = (stratified_subset(LABELS, 40, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_epoch_visits_every_row_once_but_a_short_last_batch(key):
    rows = train_order(key, 0, 10, 3)
    assert rows.shape == (3, 3)
    assert len(set(rows.ravel().tolist())) == 9


def test_epochs_differ_and_repeat_by_key(key):
    first, again, second = (train_order(key, epoch, 64, 8) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, train_order(jax.random.key(9), 0, 64, 8))


def test_fewer_images_than_a_batch_are_refused(key):
    with pytest.raises(DataError, match="5 training images, fewer than batch_size=8"):
        train_order(key, 0, 5, 8)


@pytest.mark.parametrize(("size", "batch_size"), [(7, 3), (6, 3), (1, 4)])
def test_evaluation_counts_every_row_once(size, batch_size):
    seen = [rows[real] for rows, real in eval_batches(size, batch_size)]
    assert np.concatenate(seen).tolist() == list(range(size))
    assert all(len(rows) == batch_size for rows, _ in eval_batches(size, batch_size))


def test_labelled_images_are_a_tree_of_two_arrays():
    images = LabelledImages(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4))
    assert len(jax.tree.leaves(images)) == 2
    assert images[np.array([1, 3])].labels.tolist() == [1, 3]
