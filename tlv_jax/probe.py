"""What a frozen network alone is worth on labelled images.

Shapes: images `[N, ...]`, mostly `[N, H, W, C]`; labels `[N]`; features `[N, D]`; `K` classes.
"""

import dataclasses
from typing import Any

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.examples import (
    check_images,
    check_varying,
    checked_classes,
    checked_features,
    checked_labels,
)
from tlv_jax.features import feature_reader, last_layer
from tlv_jax.network import Network
from tlv_jax.ridge import balanced_accuracy, fit_ridge

__all__ = ["ProbeResult", "probe", "probe_features"]


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeResult:
    """How well a linear classifier on a network's features does. Prints as two lines.

    An example is classified as `classes[(features @ weights + bias).argmax()]`.

    Attributes:
      balanced_accuracy: of the held-out examples: the mean of the accuracies of each class.
      accuracy: of the held-out examples.
      held_out: their number.
      examples: the number of examples that the classifier was fitted to.
      classes: the distinct labels, in ascending order.
      weights: float64 `[D, K]`, for features as they are.
      bias: float64 `[K]`.
      penalty: of the squared weights, for features divided by their deviations.
      cross_validated: balanced accuracy with that penalty, of examples that were left out in turn.
      layer: path of the layer that reads the features; None if they were given.
    """

    balanced_accuracy: float
    accuracy: float
    held_out: int
    examples: int
    classes: tuple[int, ...]
    weights: np.ndarray
    bias: np.ndarray
    penalty: float
    cross_validated: float
    layer: str | None = None

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.weights)

    def __str__(self) -> str:
        read = f" that {self.layer} reads" if self.layer else ""
        return (
            f"balanced accuracy {self.balanced_accuracy:.3f}, accuracy {self.accuracy:.3f} on "
            f"{self.held_out} held-out examples of {len(self.classes)} classes\n"
            f"{self.features} features{read}; penalty {self.penalty:.2g}, cross-validated balanced "
            f"accuracy {self.cross_validated:.3f} on {self.examples} examples"
        )


def probe(
    network: Network,
    images: Any,
    labels: Any,
    held_out: tuple[Any, Any],
    *,
    batch_size: int = 64,
) -> ProbeResult:
    """Fits a linear classifier to what the last layer of a frozen network reads, and tests it.

        >>> others = images[40:], labels[40:]
        >>> result = tlv_jax.probe(src, images[:40], labels[:40], held_out=others)
        >>> result.features, result.held_out, result.balanced_accuracy
        (24, 24, 1.0)

    The features are what the network's last conv or dense layer reads, averaged over all places.
    The classifier is that of `probe_features`.

    Args:
      network: from `trace`, with arrays, of a function `fn(params, images)` of nothing else.
      images: as the network takes them: normalized as its weights expect. The first axis is `N`.
      labels: integers `[N]`; the distinct ones are the classes.
      held_out: images and labels to test with. Nothing is chosen by them.
      batch_size: images at once.

    Raises:
      OptionError: if the network is a bare tree, the batch size is below 1, the last layer runs in
        a loop or a branch, or the images or labels are not as above. See also `probe_features`.
      ParameterTreeError: if the network's parameters are shapes without arrays.
      NonFiniteSourceError: if a parameter before the last layer is NaN or infinite.
    """
    others, other_labels = held_out
    labels, other_labels = _checked_labels(labels, other_labels)
    check_images("images", images, labels, batch_size)
    check_images("held_out images", others, other_labels, batch_size)
    layer = last_layer(network)
    read = feature_reader(network, layer, min(batch_size, len(images)))
    result = probe_features(read(images), labels, (read(others), other_labels))
    return dataclasses.replace(result, layer=layer.path)


def probe_features(
    features: np.ndarray, labels: Any, held_out: tuple[np.ndarray, Any]
) -> ProbeResult:
    """Fits a linear classifier to features, and tests it.

    It is a ridge regression on one-hot targets, with features centred and divided by their
    deviations. Every class weighs the same. The penalty is the best of 15 between 1e-4 and 1e3 by
    5-fold stratified cross-validation; with fewer examples of a class there are fewer folds.

    Args:
      features: `[N, D]`. One that never varies is left out.
      labels: integers `[N]`; the distinct ones are the classes.
      held_out: features and labels to test with. Nothing is chosen by them.

    Raises:
      OptionError: if there are fewer than two classes or two examples of a class, a held-out label
        is of no class, lengths or shapes do not fit, or features are not finite or all constant.
    """
    others, other_labels = held_out
    labels, other_labels = _checked_labels(labels, other_labels)
    features = checked_features("features", features, len(labels))
    others = checked_features("held_out features", others, len(other_labels))
    if features.shape[1] != others.shape[1]:
        raise OptionError(
            f"held_out features: expected {features.shape[1]} of each example, as in features, got "
            f"{others.shape[1]}. Compute both by the same network."
        )
    check_varying(features)
    classes, members = np.unique(labels, return_inverse=True)
    fit = fit_ridge(features, members)
    predicted = classes[(others @ fit.weights + fit.bias).argmax(1)]
    return ProbeResult(
        balanced_accuracy=balanced_accuracy(predicted, other_labels),
        accuracy=float(np.mean(predicted == other_labels)),
        held_out=len(other_labels),
        examples=len(labels),
        classes=tuple(classes.tolist()),
        weights=fit.weights,
        bias=fit.bias,
        penalty=fit.penalty,
        cross_validated=fit.score,
    )


def _checked_labels(labels: Any, held_out: Any) -> tuple[np.ndarray, np.ndarray]:
    """The labels as arrays, if a classifier can be fitted to the first and tested with the others.

    Raises:
      OptionError: as `probe_features`.
    """
    labels = checked_labels("labels", labels)
    held_out = checked_labels("held_out labels", held_out)
    classes = checked_classes(labels)
    if len(unknown := np.setdiff1d(held_out, classes)):
        raise OptionError(
            f"held_out labels: {unknown[0]} is not among labels, whose classes are "
            f"{', '.join(map(str, classes[:5]))}{', ...' * (len(classes) > 5)}. Add examples of it "
            "there, or leave it out here."
        )
    return labels, held_out
