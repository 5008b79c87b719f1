"""Prepare pictures as in the published evaluation of a network, without torch.

Shapes: pictures `[H, W, 3]`, batches `[B, crop, crop, 3]`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from importers.pictures import to_rgb
from tlv_jax.errors import OptionError
from tlv_jax.models import ImageError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Picture", "Preprocess"]

Picture = Image.Image | np.ndarray
"""A PIL image of any mode with 8 or 16 bits a channel, or a uint8 array `[H, W, 3]`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalizes pictures as torchvision's `ImageClassification` preset does.

    Departs from it before that: PIL images are turned as their EXIF orientation says, 16-bit values
    are scaled to 8 bits, and transparent pixels are laid on white.

    Attributes:
      resize: pixels of the shorter side after resizing, which keeps the aspect ratio.
      crop: pixels a side of the central square that is then cut out; black where it exceeds the
        picture.
      mean: of each channel; subtracted after scaling to [0, 1].
      std: of each channel; divided by after that.
      interpolation: "bilinear" or "bicubic", antialiased.

    Raises:
      OptionError: if a size is below 1 or the interpolation is unknown.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for option, size in (("resize", self.resize), ("crop", self.crop)):
            if size < 1:
                raise OptionError(f"{option}={size!r}, expected at least 1.")
        if self.interpolation not in _FILTERS:
            known = " or ".join(_FILTERS)
            raise OptionError(f"interpolation={self.interpolation!r}, expected {known}.")

    def __call__(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Prepares one picture, or several that may differ in size.

        Args:
          pictures: a PIL image, a uint8 array `[H, W, 3]`, or a list of them.

        Returns:
          float32 `[B, crop, crop, 3]`; `B` is 1 for a single picture.

        Raises:
          ImageError: if an array has another type or shape, a PIL image has 32-bit values, or the
            list is empty.
        """
        single = isinstance(pictures, Image.Image) or getattr(pictures, "ndim", 0) == 3
        batch: Any = [pictures] if single else pictures
        if len(batch) == 0:
            raise ImageError("Got no pictures, expected at least one.")
        return np.stack([self._prepare(_as_image(picture)) for picture in batch])

    def _prepare(self, image: Image.Image) -> np.ndarray:
        shorter = min(image.size)
        width, height = (int(self.resize * side / shorter) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), _FILTERS[self.interpolation])
        left, top = (_margin(side, self.crop) for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        values = np.asarray(image, np.float32) / np.float32(255)
        return (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def _margin(side: int, crop: int) -> int:
    """Pixels before a central crop; negative if the crop is larger, which PIL fills with black."""
    # As torchvision rounds: half a pixel to even when cutting, and down when padding.
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ImageError(
            f"A picture is {array.dtype} of shape {array.shape}, expected a PIL image or uint8 "
            "of shape [H, W, 3]. Turn a grey picture into colour: np.stack([grey] * 3, axis=-1)."
        )
    return Image.fromarray(array)
