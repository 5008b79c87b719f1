"""What the source computes of the images, at the places of the target's grids.

`N` images, `P` places of each, `C` channels.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.arrays import row_batches
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.fitting.places import at_places
from tlv_jax.layers.activations import LayerCall, activations
from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.network import Network
from tlv_jax.types import Array

Size = tuple[int, ...]


class Signal(NamedTuple):
    """Values of the source on one grid.

    Attributes:
      layer: path of the conv that computes them, or of the layer that reads them.
      read: whether they are read.
      size: of the target's grid.
    """

    layer: str
    read: bool
    size: Size


def compute_signals(
    src: Network,
    images: Any,
    wanted: Collection[Signal],
    places: Mapping[Size, np.ndarray],
    batch_size: int,
) -> dict[Signal, np.ndarray]:
    """Computes signals, float32 `[N, P, C]`.

    What a conv computes is taken before its activation function where the source's grid is the
    target's, so that a copy of the source can compute the same. A finer grid is averaged onto the
    target's after the activation function, and a coarser one interpolated.

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
    paths = list(dict.fromkeys(signal.layer for signal in wanted))

    @jax.jit
    @cpu_convolutions
    def computed(
        arrays: list[Any], images: Array, places: dict[Size, Array]
    ) -> dict[Signal, Array]:
        calls = activations(fn, put(arrays), images, paths=paths)
        found = {}
        for signal in wanted:
            found[signal] = at_places(
                _on_grid(calls[signal.layer][0], signal), -1, places[signal.size]
            )
        return found

    parts: list[dict[Signal, np.ndarray]] = []
    for rows in row_batches(len(images), batch_size):
        some = {size: drawn[rows] for size, drawn in places.items()}
        parts.append(jax.device_get(computed(arrays, images[rows], some)))
    return {
        signal: np.concatenate([part[signal] for part in parts])[: len(images)] for signal in wanted
    }


def _channels_last(values: Array, axes: tuple[int, ...]) -> Array:
    """`[N, *size, C]` with the channels, which a product may read along several axes, in one."""
    moved = jnp.moveaxis(values, axes, range(values.ndim - len(axes), values.ndim))
    return moved.reshape(*moved.shape[: values.ndim - len(axes)], -1).astype(jnp.float32)


def _on_grid(call: LayerCall, signal: Signal) -> Array:
    """The values on the target's grid, float32 `[N, *size, C]`."""
    axes = call.read_axes if signal.read else call.written_axes
    size = signal.size
    values = _channels_last(call.reads if signal.read else call.hands_on, axes)
    own = values.shape[1:-1]
    if own == size:
        return values if signal.read else _channels_last(call.normed, axes)
    if not own:  # what a head reads, averaged over all places
        values, own = values.reshape(len(values), *[1] * len(size), -1), (1,) * len(size)
    if len(own) == len(size) and all(a % b == 0 for a, b in zip(own, size, strict=True)):
        cut = [part for a, b in zip(own, size, strict=True) for part in (b, a // b)]
        within = tuple(range(2, 2 * len(size) + 1, 2))
        return values.reshape(len(values), *cut, -1).mean(within)
    return jax.image.resize(values, (len(values), *size, values.shape[-1]), "linear")
