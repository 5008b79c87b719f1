"""Fit a checkpoint to another image size, as torchvision's `interpolate_embeddings` does.

Shapes: position embeddings `[1, 1 + S * S, D]`, of the class token and of a square grid of patches,
row by row.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import numpy as np

from importers.preprocessing import Preprocess
from tlv_jax import models
from tlv_jax.errors import OptionError

__all__ = ["at_image_size", "check_image_size", "preprocess_at", "resize_positions"]

SHARPNESS = -0.75  # of the cubic kernel, `a` in torch; PIL's is -0.5


def check_image_size(name: str, image_size: int) -> None:
    """Raises unless the network of that name can be had for images of this size.

    Args:
      name: one of `models.names()`.
      image_size: pixels a side.

    Raises:
      OptionError: if the network takes images of any size, or not of this one.
    """
    unit = getattr(models.create(name), "image_size_unit", None)
    if unit is None:
        raise OptionError(
            f"image_size={image_size!r} for {name!r}, which takes images of any size. Leave it out."
        )
    if not isinstance(image_size, int) or image_size < 1 or image_size % unit:
        raise OptionError(
            f"image_size={image_size!r} for {name!r}, expected a multiple of {unit}: the pixels a "
            f"side of square images, for example {7 * unit}."
        )


def at_image_size(
    model: nn.Module, params: dict[str, Any], image_size: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and its parameters for images of this size.

    Args:
      model: the checkpoint's network, which has an `image_size`.
      params: the checkpoint's parameters; not changed.
      image_size: pixels a side, see `check_image_size`.
    """
    wanted = model.clone(image_size=image_size)
    if wanted == model or not isinstance(wanted, models.ViT):
        return wanted, params  # no parameter of a MaxViT depends on the size
    encoder = params["encoder"]
    positions = resize_positions(encoder["pos_embedding"], image_size // wanted.config.patch)
    return wanted, {**params, "encoder": {**encoder, "pos_embedding": positions}}


def resize_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Position embeddings for a grid of `side` patches a side; the class token keeps its own.

    The grid is resized like an image whose corners stay in place, with bicubic interpolation and
    without antialiasing, as `torchvision.models.vision_transformer.interpolate_embeddings` does.

    Args:
      positions: `[1, 1 + S * S, D]`.
      side: of the new grid.

    Returns:
      `[1, 1 + side * side, D]` of the same dtype.
    """
    token, grid = positions[:, :1], positions[0, 1:]
    given, width = math.isqrt(len(grid)), grid.shape[-1]
    cubic = _bicubic(given, side)
    grid = grid.reshape(given, given, width).astype(np.float64)
    resized = np.einsum("Yy,Xx,yxd->YXd", cubic, cubic, grid, optimize=True)
    resized = resized.reshape(1, side * side, width).astype(positions.dtype)
    return np.concatenate((token, resized), axis=1)


def preprocess_at(preprocess: Preprocess, image_size: int) -> Preprocess:
    """The same preparation for images of another size: as much of a picture is cut off.

    Args:
      preprocess: the published one.
      image_size: pixels a side.
    """
    resize = round(preprocess.resize * image_size / preprocess.crop)
    return dataclasses.replace(preprocess, resize=resize, crop=image_size)


def _bicubic(inputs: int, outputs: int) -> np.ndarray:
    """The matrix `[outputs, inputs]` that resizes a line of pixels; each row sums to 1."""
    places = np.linspace(0, inputs - 1, outputs)
    first = np.floor(places).astype(int)
    columns = first[:, None] + np.arange(-1, 3)
    weights = _cubic(np.abs(columns - places[:, None]))
    matrix = np.zeros((outputs, inputs))
    # Beyond the border the outermost pixel repeats.
    inside = np.clip(columns, 0, inputs - 1)
    np.add.at(matrix, (np.arange(outputs)[:, None], inside), weights)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys's kernel ("Cubic convolution interpolation", 1981), for distances below 2."""
    a = SHARPNESS
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)
