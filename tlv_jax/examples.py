"""Check examples that a classifier is fitted to.

Shapes: images `[N, ...]`, labels `[N]`, features `[N, D]`.
"""

from typing import Any

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.ridge import varying

__all__ = ["check_images", "check_varying", "checked_classes", "checked_features", "checked_labels"]


def checked_labels(name: str, labels: Any) -> np.ndarray:
    """Labels as an array `[N]`.

    Args:
      name: of the argument, for messages.
      labels: as a user passed them.

    Raises:
      OptionError: if they are not integers `[N]`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise OptionError(
            f"{name}: expected integers of shape [N], got {labels.dtype} of shape "
            f"{labels.shape}. Number the classes, and pass the number of each example's class."
        )
    return labels


def checked_classes(labels: np.ndarray) -> np.ndarray:
    """The distinct labels in ascending order, if a classifier can be fitted to them.

    Raises:
      OptionError: if there are fewer than two classes or two examples of a class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise OptionError(f"labels: expected two classes or more, got only {classes[0]}.")
    if counts.min() < 2:
        raise OptionError(
            f"labels: expected two examples of each class or more, got one of class "
            f"{classes[counts.argmin()]}. Add some, or leave the class out."
        )
    return classes


def check_images(name: str, images: Any, labels: np.ndarray, batch_size: int) -> None:
    """Checks that images can be read in batches, and have one label each.

    Raises:
      OptionError: if they have not, or the batch size is below 1.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}, expected at least 1.")
    if len(images) != len(labels):
        raise OptionError(
            f"{name}: got {len(images)}, and {len(labels)} labels. Pass one label for each."
        )


def checked_features(name: str, features: Any, count: int) -> np.ndarray:
    """Features as an array, float64 `[N, D]`.

    Raises:
      OptionError: if they are not `count` rows of finite numbers.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) != count:
        raise OptionError(
            f"{name}: expected the shape [{count}, D], one row for each label, got "
            f"{features.shape}."
        )
    if strange := int((~np.isfinite(features)).any(1).sum()):
        raise OptionError(
            f"{name}: {strange} of {count} examples have NaN or infinite ones. Check the network's "
            "weights and the values of the images."
        )
    return features


def check_varying(features: np.ndarray) -> None:
    """Checks that something can be told from features.

    Raises:
      OptionError: if all examples have the same.
    """
    if not varying(features).any():
        raise OptionError(
            f"features: expected some that vary, got the same {features.shape[1]} of all "
            f"{len(features)} examples. Pass images that differ, normalized as the network expects."
        )
