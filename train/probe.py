"""A linear classifier on the frozen source's penultimate features: the cheapest transfer.

The same on the pixels is the control: what can be told without any network.

Shapes: features `[N, D]`, labels `[N]`, logits `[N, K]`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import importers
import tlv_jax
from train.augment import normalize
from train.batches import pixels_of
from train.data import Images, LabelledImages, Splits, eval_batches
from train.metrics import summarize, tally
from train.networks import features_only

__all__ = ["Linear", "Probe", "features_by_part", "fit_linear", "fit_probe", "pixels_by_part"]

MOST_PIXELS = 16
"""A side, to which images are averaged before they are classified by their pixels."""
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


class Probe(NamedTuple):
    """A classifier of the task.

    Attributes:
      linear: on the source's features, or on pixels.
      penalty: of its weights, the best of `PENALTIES` on the validation images.
      score: on the validation images.
    """

    linear: Linear
    penalty: float
    score: float


def features_by_part(
    source: importers.Pretrained, splits: Splits, dtype: jnp.dtype, batch_size: int
) -> Callable[[str], np.ndarray]:
    """Returns what computes the source's features of a part of the images, float32 `[N, D]`.

    Each part is computed once. The images are not augmented. The source sees them normalized as it
    expects.

    Args:
      source: the pretrained network.
      splits: the images.
      dtype: of the computation.
      batch_size: images at once.
    """
    apply: Any = tlv_jax.cpu_convolutions(features_only(source.model).apply)

    @jax.jit
    def lend(batch: jax.Array, variables: Any) -> jax.Array:
        batch = normalize(batch, source.preprocess.mean, source.preprocess.std, dtype)
        return apply(variables, batch, method="features").astype(jnp.float32)

    @functools.cache
    def features(part: str) -> np.ndarray:
        variables = jax.device_put(source.variables)  # here: most trainings ask for no features
        blocks = _blocks(getattr(splits, part), batch_size)
        found = [np.asarray(lend(pixels, variables))[real] for pixels, real in blocks]
        return np.concatenate(found)

    return features


def pixels_by_part(splits: Splits, batch_size: int) -> Callable[[str], np.ndarray]:
    """Returns what computes the pixels of a part of the images, float32 `[N, D]` from 0 to 1.

    Each image is averaged over equal areas to 16 pixels a side, if it is larger. Each part is
    computed once.

    Args:
      splits: the images.
      batch_size: images at once.
    """

    @functools.cache
    def pixels(part: str) -> np.ndarray:
        blocks = _blocks(getattr(splits, part), batch_size)
        return np.concatenate([_averaged(images)[real] for images, real in blocks])

    return pixels


def _averaged(images: np.ndarray) -> np.ndarray:
    """Images of one size `[N, H, W, C]` as rows of at most 16 x 16 pixels."""
    rows, columns = (_areas(size) for size in images.shape[1:3])
    scaled = images.astype(np.float32) / 255
    averaged = np.einsum("ah,nhwc,bw->nabc", rows, scaled, columns, optimize=True)
    return averaged.reshape(len(images), -1)


def _areas(size: int) -> np.ndarray:
    """How much each pixel of a side counts in each average, `[at most 16, size]`."""
    edges = np.linspace(0, size, min(size, MOST_PIXELS) + 1)
    first = np.arange(size)
    shared = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return (np.maximum(shared, 0) / np.diff(edges)[:, None]).astype(np.float32)


def _blocks(images: Images, size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """The pixels of `size` images at a time, and which of them do not only fill up the last."""
    if isinstance(images, LabelledImages):
        for rows, real in eval_batches(len(images), size):
            yield images.images[rows], real
        return
    for block in pixels_of(images, size):
        filled = ((0, size - len(block)), (0, 0), (0, 0), (0, 0))
        yield np.pad(block, filled), np.arange(size) < len(block)


def fit_probe(known: np.ndarray, unseen: np.ndarray, splits: Splits, best_by: str) -> Probe:
    """Fits a classifier for each of `PENALTIES` to the training images and takes the best.

    Args:
      known: features of the training images, float32 `[N, D]`.
      unseen: those of the validation images.
      splits: the images; those of the test are not looked at.
      best_by: the metric that is to be highest on the validation images.
    """
    mean, std = known.mean(0), known.std(0)
    # A feature that is always the same says nothing; it must not divide by zero.
    std = np.where(std > 0, std, 1)
    labels = np.asarray(splits.train.labels)
    fitted = []
    for penalty in PENALTIES:
        linear = fit_linear((known - mean) / std, labels, len(splits.classes), penalty)
        linear = _unstandardized(linear, mean, std)
        counted = tally(linear.logits(unseen), jnp.asarray(splits.validation.labels))
        fitted.append(Probe(linear, penalty, getattr(summarize(counted), best_by)))
    return max(fitted, key=lambda probe: probe.score)


def _unstandardized(linear: Linear, mean: np.ndarray, std: np.ndarray) -> Linear:
    """The classifier of features as they are that a classifier of standardized ones amounts to."""
    weights = linear.weights / std[:, None]
    return Linear(weights, linear.bias - mean @ weights)


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
