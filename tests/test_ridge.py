"""The classifier of a probe: ridge regression that weighs every class the same."""

import numpy as np
import oracles
import pytest

from tlv_jax.ridge import PENALTIES, balanced_accuracy, fit_ridge, stratified_folds

SHAPES = [(40, 6), (36, 50)]  # fewer features than examples, and more: the dual form


def drawn(examples, features, seed=0):
    """Classes of different sizes, whose features overlap; of another scale and mean each."""
    generator = np.random.default_rng(seed)
    members = np.repeat([0, 1, 2], [examples - 18, 12, 6])
    values = generator.standard_normal((examples, features))
    values[:, :3] += 1.2 * np.eye(3)[members]
    scale = 10.0 ** generator.integers(-2, 3, features)
    return values * scale + generator.normal(size=features) * scale, members


@pytest.mark.parametrize("shape", SHAPES, ids=["primal", "dual"])
def test_a_fit_solves_the_weighted_normal_equations(shape):
    features, members = drawn(*shape)
    fit = fit_ridge(features, members)
    unseen, _ = drawn(*shape, seed=1)
    expected = oracles.ridge_scores(features, members, fit.penalty, unseen)
    np.testing.assert_allclose(unseen @ fit.weights + fit.bias, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=["primal", "dual"])
def test_the_penalty_is_the_best_in_cross_validation(shape):
    features, members = drawn(*shape)
    fit = fit_ridge(features, members)
    folds = stratified_folds(members)
    scores = [oracles.cross_validated(features, members, each, folds) for each in PENALTIES]
    assert len(set(scores)) > 2
    assert fit.score == pytest.approx(max(scores))
    best = [each for each, score in zip(PENALTIES, scores, strict=True) if score > fit.score - 1e-9]
    assert fit.penalty == max(best)


def test_both_forms_give_the_same_classifier():
    features, members = drawn(40, 6)
    # Constant features are left out, and make more features than examples.
    padded = np.hstack([features, np.full((40, 40), 7.1), np.zeros((40, 3))])
    primal, dual = fit_ridge(features, members), fit_ridge(padded, members)
    assert dual.penalty == primal.penalty
    np.testing.assert_allclose(dual.weights[:6], primal.weights, rtol=1e-8)
    np.testing.assert_array_equal(dual.weights[6:], 0)
    np.testing.assert_allclose(dual.bias, primal.bias, rtol=1e-8)


def test_of_equal_penalties_the_largest_is_taken():
    members = np.arange(20) % 2
    features = members[:, None] + np.random.default_rng(0).normal(size=(20, 4)) / 100
    fit = fit_ridge(features, members)
    assert (fit.score, fit.penalty) == (1, PENALTIES[-1])


@pytest.mark.parametrize(("smallest", "count"), [(2, 2), (4, 4), (5, 5), (13, 5)])
def test_each_class_is_in_all_folds_alike(smallest, count):
    members = np.random.default_rng(0).permutation(np.repeat([0, 1], [23, smallest]))
    folds = stratified_folds(members)
    sizes = np.array([np.bincount(folds[members == one], minlength=count) for one in (0, 1)])
    assert sizes.shape == (2, count)
    assert (sizes.max(1) - sizes.min(1) <= 1).all()
    assert sizes.min() >= 1


def test_every_class_weighs_the_same():
    assert balanced_accuracy(np.zeros(10, int), np.repeat([0, 1], [9, 1])) == 0.5
    assert balanced_accuracy(np.array([2, 2, 0]), np.array([2, 2, 2])) == pytest.approx(2 / 3)
    # Ten times as many examples of a class do not move the boundary.
    features, members = np.array([[-1.2], [-0.8], [0.8], [1.2]]), np.array([0, 0, 1, 1])
    more = fit_ridge(features[[0, 1] * 10 + [2, 3]], members[[0, 1] * 10 + [2, 3]])
    np.testing.assert_allclose(more.bias, 0.5, atol=1e-12)
