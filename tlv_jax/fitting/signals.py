"""What the source computes of the images, at the places of the target's grids.

`N` images, `P` places of each, `C` channels.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.fitting.goals import Goal
from tlv_jax.fitting.places import at_places
from tlv_jax.layers.activations import activations
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.network import Network
from tlv_jax.types import Array

Size = tuple[int, ...]


class Signal(NamedTuple):
    """Values of the source on one grid.

    Attributes:
      source: path of the conv that hands them on; of the reader of a state, for a state.
      state: whether they are a state.
      size: of the target's grid.
    """

    source: str
    state: bool
    size: Size


def signal_of(goal: Goal, size: Size) -> Signal:
    """The signal that a goal is made of."""
    return Signal(goal.reader or goal.source, goal.reader is not None, size)


def compute_signals(
    src: Network,
    images: Any,
    wanted: Collection[Signal],
    places: Mapping[Size, np.ndarray],
    batch_size: int,
) -> dict[Signal, np.ndarray]:
    """Computes signals, float32 `[N, P, C]`.

    A finer grid is averaged onto the target's, and a coarser one interpolated.

    Args:
      src: the source.
      images: as it takes them, `[N, ...]`.
      wanted: what to compute, once each.
      places: of each grid, `[N, P]`.
      batch_size: images at once.
    """
    arrays, put = split_arrays(src.params)
    arrays, fn = jax.device_put(arrays), src.fn
    assert fn is not None
    wanted = list(dict.fromkeys(wanted))
    paths = list(dict.fromkeys(signal.source for signal in wanted))

    @jax.jit
    @cpu_convolutions
    def computed(
        arrays: list[Any], images: Array, places: dict[Size, Array]
    ) -> dict[Signal, Array]:
        calls = activations(fn, put(arrays), images, paths=paths)
        found = {}
        for signal in wanted:
            call = calls[signal.source][0]
            values = call.reads if signal.state else call.hands_on
            axes = call.read_axes if signal.state else call.written_axes
            values = _channels_last(values, axes).astype(jnp.float32)
            found[signal] = at_places(_on_grid(values, signal.size), -1, places[signal.size])
        return found

    parts: list[dict[Signal, np.ndarray]] = []
    for start in range(0, len(images), batch_size):
        # The last batch is filled up with the last image: all have the shape that is compiled.
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        some = {size: drawn[rows] for size, drawn in places.items()}
        parts.append(jax.device_get(computed(arrays, images[rows], some)))
    return {
        signal: np.concatenate([part[signal] for part in parts])[: len(images)] for signal in wanted
    }


def _channels_last(values: Array, axes: tuple[int, ...]) -> Array:
    """`[N, *size, C]` with the channels, which a product may read along several axes, in one."""
    moved = jnp.moveaxis(values, axes, range(values.ndim - len(axes), values.ndim))
    return moved.reshape(*moved.shape[: values.ndim - len(axes)], -1)


def _on_grid(values: Array, size: Size) -> Array:
    """Values `[N, *size, C]` on a grid of another size."""
    own = values.shape[1:-1]
    if not own:  # what a head reads, averaged over all places
        values, own = values.reshape(len(values), *[1] * len(size), -1), (1,) * len(size)
    if own == size:
        return values
    if len(own) == len(size) and all(a % b == 0 for a, b in zip(own, size, strict=True)):
        cut = [part for a, b in zip(own, size, strict=True) for part in (b, a // b)]
        within = tuple(range(2, 2 * len(size) + 1, 2))
        return values.reshape(len(values), *cut, -1).mean(within)
    return jax.image.resize(values, (len(values), *size, values.shape[-1]), "linear")
