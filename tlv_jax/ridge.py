"""Class-balanced ridge regression on one-hot targets, with a penalty chosen by cross-validation.

Every example weighs one over the number of examples of its class, so each class weighs the same.
Means and deviations of the features are weighted in the same way.

Shapes: features `[N, D]` float64; members `[N]`, the class of each example from 0 to `K - 1`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = [
    "FOLDS",
    "PENALTIES",
    "Fit",
    "balanced_accuracy",
    "fit_ridge",
    "stratified_folds",
    "varying",
]

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-8, 7))
"""From 1e-4 to 1e3, in ascending order. A feature that varies has a deviation of 1."""

FOLDS = 5

# Features are computed in float32: what varies by less, relative to the largest value, is rounding.
ROUNDING = float(np.finfo(np.float32).eps)


class Fit(NamedTuple):
    """A linear classifier, `features @ weights + bias`.

    Attributes:
      weights: `[D, K]`; zero for a feature that never varies.
      bias: `[K]`.
      penalty: of the squared weights.
      score: balanced accuracy of the cross-validation with this penalty.
      left_out: `[N, K]`, the scores of each example by a classifier that has not seen it.
    """

    weights: np.ndarray
    bias: np.ndarray
    penalty: float
    score: float
    left_out: np.ndarray


class _Solutions(NamedTuple):
    """The classifiers for all penalties, from one decomposition.

    With `R` eigenvalues the weights are `basis @ (coordinates / (values + penalty))`.
    """

    values: np.ndarray
    basis: np.ndarray
    coordinates: np.ndarray
    mean: np.ndarray

    def weights(self, penalty: float) -> np.ndarray:
        return self.basis @ (self.coordinates / (self.values + penalty)[:, None])


def fit_ridge(
    features: np.ndarray,
    members: np.ndarray,
    *,
    standardize: bool = True,
    intercept: bool = True,
) -> Fit:
    """Chooses a penalty by stratified cross-validation, and fits the classifier to all examples.

    The penalty is that of the best balanced accuracy over the examples that were left out in turn;
    of several, the largest. There are `FOLDS` folds, or as many as the smallest class has examples.

    Args:
      features: `[N, D]`, finite.
      members: `[N]`; each class has at least two examples.
      standardize: divide each feature by its own deviation; else all by the root of their mean
        variance, so that a feature which hardly varies gets no large weight.
      intercept: whether the bias may differ between classes. Else features are not centred, and
        every class has the bias `1 / K`.
    """
    solve = functools.partial(_solve, standardize=standardize, intercept=intercept)
    left_out = _cross_validate(features, members, solve)
    scores = [balanced_accuracy(left_out(each).argmax(1), members) for each in PENALTIES]
    score, penalty = max(zip(scores, PENALTIES, strict=True))
    solutions = solve(features, members)
    weights = solutions.weights(penalty)
    bias = 1 / len(np.unique(members)) - solutions.mean @ weights
    return Fit(weights, bias, penalty, score, left_out(penalty))


def balanced_accuracy(predicted: np.ndarray, members: np.ndarray) -> float:
    """The mean, over the classes that occur, of the share that is classified as that class."""
    shares = [np.mean(predicted[members == one] == one) for one in np.unique(members)]
    # Rounded once: the order of the classes does not decide between equal scores.
    return math.fsum(shares) / len(shares)


def varying(features: np.ndarray) -> np.ndarray:
    """Which features differ between examples, by more than rounding, `[D]`."""
    return np.ptp(features, axis=0) > ROUNDING * np.abs(features).max(0)


def _cross_validate(
    features: np.ndarray, members: np.ndarray, solve: Callable[..., _Solutions]
) -> Callable[[float], np.ndarray]:
    """The scores `[N, K]` of all examples by classifiers that have not seen them, by penalty."""
    folds, parts = stratified_folds(members), []
    for fold in range(folds.max() + 1):
        out = folds == fold
        solutions = solve(features[~out], members[~out])
        read = (features[out] - solutions.mean) @ solutions.basis
        parts.append((out, solutions._replace(basis=read)))

    def left_out(penalty: float) -> np.ndarray:
        classes = len(np.unique(members))
        # The bias is the same for all classes where the features have the mean.
        scores = np.full((len(members), classes), 1 / classes)
        for out, read in parts:
            scores[out] += read.weights(penalty)
        return scores

    return left_out


def stratified_folds(members: np.ndarray) -> np.ndarray:
    """The fold of each example `[N]`: drawn at random, each class in all folds alike."""
    count = min(FOLDS, np.bincount(members).min())
    generator = np.random.default_rng(0)
    folds = np.empty(len(members), np.int64)
    for one in np.unique(members):
        rows = generator.permutation(np.flatnonzero(members == one))
        folds[rows] = np.arange(len(rows)) % count
    return folds


def _solve(
    features: np.ndarray, members: np.ndarray, *, standardize: bool, intercept: bool
) -> _Solutions:
    """Decomposes the normal equations, in the dual form where there are fewer examples."""
    counts = np.bincount(members)
    shares = 1 / (len(counts) * counts[members])  # they add up to 1, as those of each class to 1/K
    mean = shares @ features if intercept else np.zeros(features.shape[1])
    scale = _scale(features, mean, shares, standardize)
    root = np.sqrt(shares)[:, None]
    read = root * (features - mean) * scale
    wanted = root * (np.eye(len(counts))[members] - 1 / len(counts))
    if len(read) < read.shape[1]:
        values, vectors = np.linalg.eigh(read @ read.T)
        basis, coordinates = read.T @ vectors, vectors.T @ wanted
    else:
        values, basis = np.linalg.eigh(read.T @ read)
        coordinates = basis.T @ (read.T @ wanted)
    # None is below zero but by rounding. The basis takes features as they are, but for the mean.
    return _Solutions(np.maximum(values, 0), scale[:, None] * basis, coordinates, mean)


def _scale(
    features: np.ndarray, mean: np.ndarray, shares: np.ndarray, standardize: bool
) -> np.ndarray:
    """What each feature is multiplied by `[D]`; 0 for one that never varies."""
    varies, variance = varying(features), shares @ np.square(features - mean)
    if not standardize:
        variance = np.full_like(variance, variance[varies].mean() if varies.any() else 1.0)
    deviation = np.sqrt(variance)
    return np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
