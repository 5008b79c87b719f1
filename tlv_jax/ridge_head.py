"""Set a network's last layer in closed form, from labelled images.

Shapes: images `[N, ...]`, labels `[N]`, features `[N, D]`, scores and logits `[N, K]`.
"""

import math
import warnings
from typing import Any

import jax
import numpy as np
import scipy.optimize
import scipy.special

from tlv_jax.apply import put_kernel, put_vector
from tlv_jax.arrays import placed
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.errors import OptionError
from tlv_jax.examples import (
    check_images,
    check_varying,
    checked_classes,
    checked_features,
    checked_labels,
)
from tlv_jax.features import feature_reader, last_layer
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.layers.paths import array_leaves, with_leaves
from tlv_jax.network import Network, require_runnable
from tlv_jax.ridge import fit_ridge
from tlv_jax.types import Layer, PyTree

FACTORS = (1e-3, 1e6)  # within which that of the scores is looked for
TOLERANCE = 0.05  # of the largest logit: networks may compute in bfloat16


def ridge_head(network: Network, images: Any, labels: Any, *, batch_size: int = 64) -> PyTree:
    """Sets the last layer to a linear classifier of what it reads, without training.

        >>> new_params = tlv_jax.ridge_head(dst, images, labels)
        >>> float(np.mean(apply(new_params, images).argmax(1) == labels))
        1.0

    The classifier is a ridge regression on one-hot targets, by which every class weighs the same.
    Its penalty is the best of 15 by 5-fold stratified cross-validation, as in `tlv_jax.probe`. But
    here features keep their scale: divided by its own deviation, one that hardly varies would get
    weights that make a training diverge.

    A ridge's scores are between 0 and 1 or so, whose softmax is next to uniform. Weights and bias
    are therefore multiplied by the number with which the softmax tells best of what classes the
    left-out images of the cross-validation are, if classes are equally frequent.

    Args:
      network: from `trace`, with arrays, of a function `fn(params, images)` of nothing else. Its
        last layer is dense or a 1x1 convolution, and has one output for each class.
      images: as the network takes them: normalized as its weights expect. The first axis is `N`.
      labels: integers `[N]` from 0 to `K - 1`, at least two of each.
      batch_size: images at once.

    Returns:
      A new tree of the type, structure, shapes and dtypes of the network's parameters. Only the
      last layer's kernel and bias are new. If it has no bias, the regression has no intercept.

    Raises:
      OptionError: if the network is a bare tree, the last layer is of another kind, has another
        number of outputs, or runs in a loop or a branch, or the images or labels are not as above.
      ParameterTreeError: if the network's parameters are shapes without arrays.
      NonFiniteSourceError: if a parameter before the last layer is NaN or infinite.

    Warns:
      UserWarning: if the network does not return what its last layer writes, averaged over places.
        An activation function may follow, or a bias that tracing does not find beside the kernel.
    """
    layer, labels = last_layer(network), checked_labels("labels", labels)
    check_images("images", images, labels, batch_size)
    _check_head(layer, labels)
    batch = min(batch_size, len(images))
    read = feature_reader(network, layer, batch)(images)
    features = checked_features("features", read, len(labels))
    check_varying(features)
    bias = dict(layer.vectors).get("bias")
    fit = fit_ridge(features, labels, standardize=False, intercept=bias is not None)
    factor = _calibrated(fit.left_out, labels)
    weights, offset = factor * fit.weights, factor * (fit.bias - fit.bias.mean())
    own = array_leaves(network.params, name="network")
    new = {path: np.asarray(own[path]) for path in (layer.weight, bias) if path}
    put_kernel(layer, weights, new)
    if bias:
        put_vector(layer, bias, offset, new)
    new = {path: placed(leaf, own[path]) for path, leaf in new.items()}
    params = with_leaves(network.params, own, new)
    _warn_unless_returned(network, params, images[:batch], features[:batch] @ weights + offset)
    return params


def _check_head(layer: Layer, labels: np.ndarray) -> None:
    if math.prod(layer.shape[:-2]) > 1 or layer.groups > 1:
        raise OptionError(
            f"network: expected that its last layer {layer.path} is dense or a 1x1 convolution, "
            f"got one with a kernel of shape {layer.shape} in {layer.groups} group(s). Put a dense "
            "layer behind it."
        )
    classes, outputs = checked_classes(labels), layer.shape[-1]
    if not np.array_equal(classes, np.arange(outputs)):
        raise OptionError(
            f"labels: expected classes from 0 to {outputs - 1}, all of them, as the last layer "
            f"{layer.path} has {outputs} outputs, got {len(classes)} from {classes[0]} to "
            f"{classes[-1]}. Number the classes from 0, and give the layer one output for each."
        )


def _calibrated(scores: np.ndarray, labels: np.ndarray) -> float:
    """The factor of scores with which their softmax has the least cross-entropy.

    Every class weighs the same. Targets are `(n + 1) / (n + K)` for the class of an example and
    `1 / (n + K)` for the others, where the class has `n` examples. Without that, the factor would
    be infinite where all are told apart. Source: Platt (1999), "Probabilistic Outputs for Support
    Vector Machines", section 2.2, who has two classes.
    """
    counts = np.bincount(labels)
    examples = counts[labels][:, None]
    targets = (examples * np.eye(len(counts))[labels] + 1) / (examples + len(counts))
    shares = 1 / (len(counts) * counts[labels])

    def loss(log: float) -> float:
        probabilities = scipy.special.log_softmax(math.exp(log) * scores, axis=1)
        return -float(shares @ (targets * probabilities).sum(1))

    bounds = [math.log(factor) for factor in FACTORS]
    return math.exp(scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x)


def _warn_unless_returned(
    network: Network, params: PyTree, images: Any, logits: np.ndarray
) -> None:
    """Warns if no output of the network is these logits."""
    fn = require_runnable(network, "network")
    arrays, put = split_arrays(params)
    run = jax.jit(cpu_convolutions(lambda arrays, images: fn(put(arrays), images)))
    tolerance = TOLERANCE * np.abs(logits).max()
    for answer in jax.tree.leaves(jax.device_get(run(arrays, images))):
        if answer.size == logits.size:
            answer = np.asarray(answer, np.float64).reshape(logits.shape)
            if np.abs(answer - logits).max() <= tolerance:
                return
    warnings.warn(
        "network: it does not return what its last layer writes, averaged over places, so its "
        "softmax is not the classifier that was fitted. An activation function may follow, or a "
        "bias that is not stored beside the kernel: check what it returns.",
        stacklevel=3,
    )
