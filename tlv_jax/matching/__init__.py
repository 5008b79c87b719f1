"""Who gives to whom: matchers, and how well layers fit each other.

A matcher is a function `(source, target) -> pairs` on what a standardization returned: layers, or
blocks of them. Pairs come in the target's order; a target layer may have none. The library's
matchers are frozen dataclasses; their fields are their settings.
"""

from tlv_jax.matching.each_once import EachOnce
from tlv_jax.matching.matchers import (
    Bipartite,
    ByCoverage,
    ByIndex,
    ByScore,
    ByScoreFlat,
    Match,
    Random,
)
from tlv_jax.matching.scores import Score, position_scores, shape_scores

__all__ = [
    "Bipartite",
    "ByCoverage",
    "ByIndex",
    "ByScore",
    "ByScoreFlat",
    "EachOnce",
    "Match",
    "Random",
    "Score",
    "position_scores",
    "shape_scores",
]
