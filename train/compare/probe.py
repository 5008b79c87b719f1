"""A linear classifier on the frozen source's penultimate features: the cheapest transfer.

Shapes: features `[N, D]`, labels `[N]`, logits `[N, K]`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import tlv_jax
from train.augment import normalize
from train.compare.study import Study
from train.data import PARTS, LabelledImages, eval_batches
from train.metrics import Summary, summarize, tally
from train.networks import features_only

__all__ = ["Linear", "fit_linear", "probe"]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of which the one that is best on the validation images is taken."""


class Linear(NamedTuple):
    """A linear classifier, `features @ weights + bias`.

    Attributes:
      weights: `[D, K]`.
      bias: `[K]`.
    """

    weights: jax.Array
    bias: jax.Array

    def logits(self, features: jax.Array | np.ndarray) -> jax.Array:
        """Classifies features."""
        return jnp.asarray(features) @ self.weights + self.bias[None]


def probe(study: Study) -> tuple[float, list[Summary]]:
    """Fits a classifier for each of `PENALTIES` to the training images, without augmentation.

    Args:
      study: with the source and the images.

    Returns:
      The penalty that is best on the validation images, and what its classifier does on the
      training, validation and test images.

    Raises:
      TLVError: if the source cannot take images of that size.
    """
    features = _features(study)
    mean, std = features["train"].mean(0), features["train"].std(0)
    # A feature that is always the same says nothing; it must not divide by zero.
    features = {part: (each - mean) / np.where(std > 0, std, 1) for part, each in features.items()}
    labels = {part: jnp.asarray(getattr(study.splits, part).labels) for part in PARTS}
    fitted = []
    for penalty in PENALTIES:
        linear = fit_linear(
            features["train"], np.asarray(labels["train"]), len(study.splits.classes), penalty
        )
        summaries = [
            summarize(tally(linear.logits(features[part]), labels[part])) for part in PARTS
        ]
        fitted.append((penalty, summaries))
    return max(fitted, key=lambda each: getattr(each[1][1], study.settings.best_by))


def fit_linear(features: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> Linear:
    """Multinomial logistic regression by L-BFGS.

    Minimizes the mean cross-entropy plus half the penalty times the sum of squared weights; the
    biases are free.

    Args:
      features: float32 `[N, D]`, of zero mean and unit variance.
      labels: int `[N]`.
      classes: `K`.
      penalty: above 0.
    """
    start = np.zeros((features.shape[1] + 1) * classes)

    def in_double(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _objective(flat.astype(np.float32), features, labels, penalty)
        return float(value), np.asarray(gradient, np.float64)

    found = scipy.optimize.minimize(in_double, start, jac=True, method="L-BFGS-B")
    return _linear(jnp.asarray(found.x, jnp.float32), features.shape[1])


@jax.jit
@jax.value_and_grad
def _objective(
    flat: jax.Array, features: jax.Array, labels: jax.Array, penalty: jax.Array
) -> jax.Array:
    linear = _linear(flat, features.shape[1])
    losses = optax.softmax_cross_entropy_with_integer_labels(linear.logits(features), labels)
    return losses.mean() + penalty / 2 * jnp.sum(linear.weights**2)


def _linear(flat: jax.Array, features: int) -> Linear:
    rows = flat.reshape(features + 1, -1)
    return Linear(rows[:-1], rows[-1])


def _features(study: Study) -> dict[str, np.ndarray]:
    """The source's features of all images, float32 `[N, D]` of each part."""
    source = study.source
    apply: Any = tlv_jax.cpu_convolutions(features_only(source.model).apply)

    @jax.jit
    def lend(variables: Any, batch: jax.Array) -> jax.Array:
        batch = normalize(batch, source.preprocess.mean, source.preprocess.std, study.dtype)
        return apply(variables, batch, method="features").astype(jnp.float32)

    def features_of(images: LabelledImages) -> np.ndarray:
        batches = eval_batches(len(images), study.settings.batch_size)
        found = [np.asarray(lend(variables, images.images[rows]))[real] for rows, real in batches]
        return np.concatenate(found)

    variables = jax.device_put(source.variables)
    return {part: features_of(getattr(study.splits, part)) for part in PARTS}
