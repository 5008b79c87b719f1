"""Choose channels by their variance.

Every strategy has the form `(key, variance [..., N], count) -> indices [..., count]`: along the
last axis `count` distinct positions, for any `1 <= count <= N`. All rank with a stable sort, so
that equal variances are taken in the order of their positions. `key` is consumed by `select_random`
alone; the others take it so that all can stand in each other's place.

The strategies are those of TLVFC's published code (`choose_candidate`), made total: any count and
never a channel twice.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from tlv_jax.types import Array

__all__ = [
    "SELECTIONS",
    "Select",
    "select_interleaved",
    "select_max",
    "select_min",
    "select_random",
    "select_two_tailed",
]

Select = Callable[[Array, Array, int], Array]


def select_max(key: Array, variance: Array, count: int) -> Array:
    """Takes the `count` largest, in ascending order. `[..., N] -> [..., count]`.

    Published as `maxVar`.
    """
    del key
    return jnp.argsort(variance)[..., variance.shape[-1] - count :]


def select_min(key: Array, variance: Array, count: int) -> Array:
    """Takes the `count` smallest, in ascending order. `[..., N] -> [..., count]`.

    Published as `minVar`.
    """
    del key
    return jnp.argsort(variance)[..., :count]


def select_interleaved(key: Array, variance: Array, count: int) -> Array:
    """Takes every k-th in ascending order, k = N // count. `[..., N] -> [..., count]`.

    Published as `interLeaved`, which starts at rank 1 and so comes out one short where that leaves
    too few ranks (`count == N` among them); ours then starts at rank 0.
    """
    del key
    size = variance.shape[-1]
    stride = size // count
    start = min(1, size - 1 - stride * (count - 1))
    return jnp.argsort(variance)[..., start::stride][..., :count]


def select_two_tailed(key: Array, variance: Array, count: int) -> Array:
    """Takes half from either end, in ascending order. `[..., N] -> [..., count]`.

    Published as `twoTailed`. An odd `count`, on which the published code fails, takes its extra one
    from the upper end.
    """
    del key
    order = jnp.argsort(variance)
    lower = count // 2
    upper = order[..., variance.shape[-1] - (count - lower) :]
    return jnp.concatenate([order[..., :lower], upper], axis=-1)


def select_random(key: Array, variance: Array, count: int) -> Array:
    """Draws `count` without replacement, in random order. `[..., N] -> [..., count]`.

    Published as `random`. Departs from the published code, whose `randint(0, N - 1)` draws with
    replacement and can never return the last channel.
    """
    return jnp.argsort(jax.random.uniform(key, variance.shape))[..., :count]


SELECTIONS: Mapping[str, Select] = MappingProxyType(
    {
        "max": select_max,
        "min": select_min,
        "interleaved": select_interleaved,
        "two_tailed": select_two_tailed,
        "random": select_random,
    }
)
