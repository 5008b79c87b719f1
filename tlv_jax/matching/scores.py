"""How well layers fit each other, from shapes and places alone.

A score is a function `(source layers, target layers) -> [m, n]`, float64 in [0, 1]. 0 means that
the two must not be matched.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tlv_jax.types import Layer

Score = Callable[[Sequence[Layer], Sequence[Layer]], np.ndarray]


def shape_scores(source: Sequence[Layer], target: Sequence[Layer]) -> np.ndarray:
    """Scores by shape (DPIAT's `ShapeScore`). m and n layers `-> [m, n]`.

    The product, over all axes that both have, of the smaller size divided by the larger. Layers of
    different kinds score 0. Published code also scores convs with different numbers of spatial axes
    0; ours fits them, see `tlv_jax.rules`.
    """
    if not source or not target:
        return np.zeros((len(source), len(target)))
    kinds, others = (np.array([layer.kind for layer in side]) for side in (source, target))
    scores = (kinds[:, None] == others[None, :]).astype(float)
    rank = max(2, *(len(layer.shape) for layer in (*source, *target)))
    sizes, others = (
        np.array([(np.nan,) * (rank - len(layer.shape)) + layer.shape for layer in side], float)
        for side in (source, target)
    )
    # Axes in torch's order, so that ties round as in the published code.
    for axis in (-1, -2, *range(rank - 2)):
        ratio = sizes[:, None, axis] / others[None, :, axis]
        ratio = np.where(np.isnan(ratio), 1, ratio)  # an axis that one of them lacks
        scores *= np.minimum(ratio, 1 / ratio)
    return scores


def position_scores(source: Sequence[Layer], target: Sequence[Layer]) -> np.ndarray:
    """The shape score times `1 - d**2`, d the distance between two places in [0, 1]. `-> [m, n]`.

    The place of a traced layer is its depth in the graph; that of any other is its place in the
    order.
    """
    distance = _places(source)[:, None] - _places(target)[None, :]
    return shape_scores(source, target) * (1 - distance**2)


def _places(layers: Sequence[Layer]) -> np.ndarray:
    """Where each layer stands, from 0 at the first to 1 at the last."""
    depths: dict[str, int] = {}
    for number, layer in enumerate(layers):
        before = [depths[path] for path in layer.inputs if path in depths]
        depths[layer.path] = max(before) + 1 if before else (0 if layer.inputs else number)
    places = np.array([depths[layer.path] for layer in layers], float)
    return places / max(places.max(initial=0.0), 1.0)
