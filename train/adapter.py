"""Fit the source's features to the width of the target's, before they are lent.

Published crossover lends the first features where the widths differ. Two other ways: the principal
components of the source's features on the training images, or a linear layer that is trained with
the target.

Shapes: lent features `[B, D]`, features of the target `[B, D']`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import importers
from train.networks import features_only
from train.probe import Linear
from train.recipe import Recipe
from train.target import Target

__all__ = ["Widths", "draw_adapter", "fit_projection", "matched", "widths_to_adapt"]

SMALLEST = 1e-9  # share of the largest variance, below which a component is rounding


class Widths(NamedTuple):
    """How many features the source lends, and how many the target has."""

    source: int
    target: int


def widths_to_adapt(
    recipe: Recipe,
    source: importers.Pretrained,
    target: Target,
    images: jax.Array,
    console: Console,
) -> Widths | None:
    """Returns what the recipe's adapter is between; None if it has none or the widths are equal.

    Args:
      recipe: of the training.
      source: that lends.
      target: to which features can be lent.
      images: `[1, H, W, 3]` of any content.
      console: is told.
    """
    kind = recipe.crossover_adapter
    if kind == "published":
        return None
    widths = Widths(_width_lent(source, images), _width_of(target, images))
    equal = widths.source == widths.target
    told = f"{kind}, of {widths.source} features to {widths.target}"
    if equal:
        told = f"none, as source and target have {widths.source} features each"
    console.print(f"crossover adapter: {told}", highlight=False, soft_wrap=True)
    return None if equal else widths


def _width_of(target: Target, images: jax.Array) -> int:
    """By shapes alone."""
    widths: list[int] = []

    def change(features: jax.Array) -> jax.Array:
        widths.append(features.shape[1])
        return features

    def run(images: jax.Array) -> Any:
        params, state = target.split(target.network.params)
        return target.train(params, state, images, jax.random.key(0), change)[0]

    jax.eval_shape(run, images)
    return widths[0]


def _width_lent(source: importers.Pretrained, images: jax.Array) -> int:
    apply = functools.partial(features_only(source.model).apply, method="features")
    lent: Any = jax.eval_shape(apply, source.variables, images)
    return lent.shape[1]


def fit_projection(features: np.ndarray, width: int) -> Linear:
    """Returns the map to the principal components, each of mean 0 and deviation 1.

    Args:
      features: of the source, float32 `[N, D]`.
      width: of the target's. There are fewer components where the source has fewer.
    """
    mean = features.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(features, rowvar=False, bias=True))
    variances, directions = variances[::-1], directions[:, ::-1]  # the largest first
    kept = min(width, int(np.sum(variances > SMALLEST * variances[0])))
    weights = directions[:, :kept]
    # A direction has no sign: let its largest entry be positive.
    weights = weights * np.sign(weights[np.abs(weights).argmax(0), np.arange(kept)])
    weights /= np.sqrt(variances[:kept])
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(-mean @ weights, jnp.float32))


def draw_adapter(key: jax.Array, widths: Widths) -> Linear:
    """Draws a layer from the source's features to the target's, by LeCun's initialization."""
    return Linear(jax.nn.initializers.lecun_normal()(key, widths), jnp.zeros(widths.target))


def matched(components: jax.Array, features: jax.Array) -> jax.Array:
    """Gives components the mean and the deviation that features have in this batch.

    The target's features change in training, so numbers of its start would not do. No gradient
    reaches the features.

    Args:
      components: `[B, K]` of mean 0 and deviation 1.
      features: of the target, `[B, D']`, the first K of which are matched.
    """
    like = jax.lax.stop_gradient(features[:, : components.shape[1]]).astype(jnp.float32)
    components = components[:, : like.shape[1]]
    return components * like.std(0, keepdims=True) + like.mean(0, keepdims=True)
