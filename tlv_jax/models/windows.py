"""Windows over images, in which Swin and MaxViT attend, and positions within one."""

import jax
import numpy as np

__all__ = ["from_windows", "relative_position_index", "to_windows"]


def to_windows(images: jax.Array, size: int) -> jax.Array:
    """Cuts images into windows, row by row. `[B, H, W, C] -> [B, H * W / size**2, size**2, C]`.

    Args:
      images: with sides that `size` divides.
      size: of a window, both sides.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    cut = images.reshape(batch, rows, size, columns, size, channels)
    return cut.swapaxes(2, 3).reshape(batch, rows * columns, size * size, channels)


def from_windows(windows: jax.Array, size: int, sides: tuple[int, int]) -> jax.Array:
    """Undoes `to_windows`. `[B, H * W / size**2, size**2, C] -> [B, H, W, C]`.

    Args:
      windows: of `to_windows`.
      size: of a window, both sides.
      sides: `H` and `W`.
    """
    batch, _, _, channels = windows.shape
    rows, columns = sides[0] // size, sides[1] // size
    cut = windows.reshape(batch, rows, columns, size, size, channels)
    return cut.swapaxes(2, 3).reshape(batch, *sides, channels)


def relative_position_index(size: int) -> np.ndarray:
    """Which of the `(2 * size - 1)**2` displacements leads from each pixel to each. `[P, P]`.

    `P` is `size**2`; int64, as torch keeps it.
    """
    rows, columns = (axis.reshape(-1) for axis in np.indices((size, size)))
    down, right = (axis[:, None] - axis[None, :] + size - 1 for axis in (rows, columns))
    return (down * (2 * size - 1) + right).astype(np.int64)
