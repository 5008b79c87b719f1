"""The places of a grid that a kernel is solved for.

`N` images, `P` places of each, `C` channels.
"""

import math
from typing import Any

import numpy as np

from tlv_jax.arrays import layer_key, namespace, noise
from tlv_jax.types import Array


def draw_places(key: Array, size: tuple[int, ...], images: int, rows: int) -> np.ndarray:
    """Draws places of each image, all if there are few. int32 `[N, P]`, ascending.

    Args:
      key: random key. Grids of one size get the same places.
      size: of the grid.
      images: `N`.
      rows: `N P` is at most this, but `P` at least 1.
    """
    count = math.prod(size)
    wanted = min(count, max(rows // images, 1))
    if wanted == count:
        return np.tile(np.arange(count, dtype=np.int32), (images, 1))
    own = layer_key(key, "x".join(map(str, size)))
    generator = np.random.default_rng(noise(own, (4,), np))
    drawn = generator.random((images, count)).argpartition(wanted, axis=1)[:, :wanted]
    return np.sort(drawn, axis=1).astype(np.int32)


def at_places(values: Any, axis: int, places: Any) -> Any:
    """Takes the values at places. `[N, *size] with channels -> [N, P, C]`.

    Args:
      values: of NumPy or JAX, the images' axis first.
      axis: of the channels.
      places: `[N, P]`.
    """
    xp = namespace(None, values)
    flat = xp.moveaxis(values, axis, -1).reshape(len(values), -1, values.shape[axis])
    return xp.take_along_axis(flat, places[..., None], axis=1)
