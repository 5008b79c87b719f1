"""Hints: the target imitates the source's activations at layers that the transfer paired.

Source: Romero et al. (2015), "FitNets: Hints for Thin Deep Nets", section 2.2. There one layer of
each network is named by hand. Here the plan of the transfer names them. As there, a learned linear
map takes the student's channels to the teacher's. Unlike there, both are standardized, and the
hints are given along with the labels, not before.

Shapes: activations of the target `[B, H, W, C]` and of the source `[B, H', W', C']`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tlv_jax
from train.errors import ConfigError

__all__ = [
    "choose_hints",
    "draw_maps",
    "hint_loss",
    "module_path",
    "paired_convolutions",
    "watched",
]

MOST = 4  # pairs
EPSILON = 1e-5  # of variances, as in batch norm


def paired_convolutions(plan: tlv_jax.TransferPlan) -> tuple[tuple[str, str], ...]:
    """Returns the paths `(source, target)` of paired convolutions that each run once."""
    return tuple(
        (pair.source.path, pair.target.path)
        for pair in plan.layer_pairs
        if pair.target.kind == "conv" and pair.target.calls == pair.source.calls == 1
    )


def choose_hints(
    pairs: Sequence[tuple[str, str]], own: Sequence[Any], given: Sequence[Any]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Chooses the last pair at each size of the target's activations, the last 4 of these.

    Args:
      pairs: from `paired_convolutions`.
      own: shapes of the target's activations; None where a layer is not seen.
      given: those of the source.

    Returns:
      The channels of both layers of a pair, `(C, C')`, by the pair, in the target's order.

    Raises:
      ConfigError: if no pair has activations `[B, H, W, C]`.
    """
    last = {
        mine.shape[1:3]: (pair, (mine.shape[3], theirs.shape[3]))
        for pair, mine, theirs in zip(pairs, own, given, strict=True)
        if getattr(mine, "ndim", 0) == getattr(theirs, "ndim", 0) == 4
    }
    if not last:
        raise ConfigError(
            "distill=plan: the plan pairs no convolutions whose activations [B, H, W, C] are seen "
            "in both networks. Set distill=logits, or another method."
        )
    return dict(list(last.values())[-MOST:])


def module_path(path: str) -> tuple[str, ...]:
    """Returns the names of the Linen modules down to a layer, of the layer's path."""
    return tuple(path.split("/")[1:])


def watched(apply: Callable[..., Any], paths: Sequence[tuple[str, ...]]) -> Callable[..., Any]:
    """The same function of a Linen module, which also returns what the modules at paths return."""

    def run(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        seen: dict[tuple[str, ...], Any] = {}

        def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in paths:
                seen[context.module.path] = result
            return result

        with nn.intercept_methods(interceptor):
            result = apply(*args, **kwargs)
        return result, [seen.get(path) for path in paths]

    return run


def draw_maps(key: jax.Array, channels: Iterable[tuple[int, int]]) -> tuple[jax.Array, ...]:
    """Draws a map of channels `[C, C']` for each pair, by LeCun's initialization."""
    draw = jax.nn.initializers.lecun_normal()
    return tuple(
        draw(jax.random.fold_in(key, number), sizes) for number, sizes in enumerate(channels)
    )


def hint_loss(
    own: Sequence[jax.Array], given: Sequence[jax.Array], maps: Sequence[jax.Array]
) -> jax.Array:
    """The mean over pairs of the squared differences of standardized activations.

    The activations of a pair are averaged onto the smaller grid of the two.

    Args:
      own: activations of the target.
      given: those of the source.
      maps: of channels, `[C, C']` each.
    """
    losses = []
    for mine, theirs, channels in zip(own, given, maps, strict=True):
        grid = tuple(map(min, mine.shape[1:3], theirs.shape[1:3]))
        mine = _standardized(_averaged(mine, grid)) @ channels
        losses.append(jnp.mean((mine - _standardized(_averaged(theirs, grid))) ** 2))
    return jnp.mean(jnp.stack(losses))


def _standardized(maps: jax.Array) -> jax.Array:
    """Each channel with mean 0 and deviation 1 over the batch and all places."""
    mean, variance = (fn(maps, axis=(0, 1, 2), keepdims=True) for fn in (jnp.mean, jnp.var))
    return (maps - mean) * jax.lax.rsqrt(variance + EPSILON)


def _averaged(maps: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """The means over cells of equal size, `[B, *grid, C]`; pixels at a border count in parts."""
    rows, columns = (_shares(*sizes) for sizes in zip(maps.shape[1:3], grid, strict=True))
    return jnp.einsum("bhwc,gh,kw->bgkc", maps.astype(jnp.float32), rows, columns)


def _shares(size: int, cells: int) -> np.ndarray:
    """How much of each cell each pixel covers, `[cells, size]`."""
    edges, pixels = np.arange(cells + 1)[:, None] * size / cells, np.arange(size)[None]
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.maximum(covered, 0) * cells / size).astype(np.float32)
