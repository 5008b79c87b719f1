"""Turn a picture of any kind into 8-bit RGB, upright, for prediction and training alike."""

import struct
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import ExifTags, Image

from tlv_jax.models import ImageError

__all__ = ["to_rgb"]

BITS, INTERPRETATION = ExifTags.Base.BitsPerSample, ExifTags.Base.PhotometricInterpretation
WHITE_IS_ZERO = 0
TURNS: Mapping[int | None, Image.Transpose] = MappingProxyType(  # by EXIF orientation
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
BAD_EXIF = (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the picture in 8-bit RGB, as an image viewer shows it on white.

    It is turned as its EXIF orientation says, 16-bit values are scaled to 8 bits, and transparent
    pixels are laid on white. torchvision's presets and data sets do none of the three. Of several
    frames the current one is taken, which is the first in a file just opened.

    Args:
      image: of any mode; may be a file that is open but not yet decoded.

    Raises:
      ImageError: if the values for black and white are unknown, as of 32-bit integers and floats.
      OSError: if the file is damaged.
    """
    image.load()
    # Turning drops the file's format and tags, so these are asked of `image`.
    upright = _upright(image)
    if image.mode.startswith(("I", "F")):
        if not _fills_16_bits(image):
            raise ImageError(
                f"A picture has mode {image.mode!r}, whose values for black and white are unknown, "
                "expected 8 or 16 bits a channel. Scale its values to 0 to 255 and save it as an "
                "8-bit PNG."
            )
        upright = _eight_bits(upright, image)
    return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose also rewrites the EXIF, which fails where any other tag is damaged.
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except BAD_EXIF:
        return image
    return image if turn is None else image.transpose(turn)


def _fills_16_bits(image: Image.Image) -> bool:
    """Whether 0 is black and 65535 white, or the reverse."""
    if image.mode == "I":
        return image.format in ("PNG", "PPM")  # which Pillow scales to 16 bits
    # FITS files hold signed integers and an offset, which Pillow ignores.
    return image.mode.startswith("I;16") and image.format != "FITS"


def _eight_bits(pixels: Image.Image, file: Image.Image) -> Image.Image:
    """Keeps the upper 8 bits, as Pillow does with pictures of 16 bits in each of three colours."""
    tags = getattr(file, "tag_v2", {})  # of TIFF, where Pillow leaves two things to its users
    bits = tags.get(BITS, (16,))[0]
    values = (np.asarray(pixels) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - values if tags.get(INTERPRETATION) == WHITE_IS_ZERO else values)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
