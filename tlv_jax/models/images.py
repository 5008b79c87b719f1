"""The check that every network makes of its input."""

import jax

from tlv_jax.errors import TLVError

__all__ = ["ImageError", "check_images"]


class ImageError(TLVError, ValueError):
    """Images do not have the shape or the type that is needed."""


def check_images(images: jax.Array, *, channels: int, smallest: int = 1) -> None:
    """Raises unless `images` is `[B, H, W, channels]` with both sides at least `smallest` pixels.

    Args:
      images: what the network was called with.
      channels: the network's `in_channels`.
      smallest: the fewest pixels a side that leave something to pool.

    Raises:
      ImageError: with the shape that came, the one expected, and the likely remedy.
    """
    expected = f"[B, H, W, {channels}]"
    if images.ndim != 4:
        raise ImageError(
            f"Images have shape {tuple(images.shape)}, expected {expected}. "
            "Give a single image a batch axis with images[None]."
        )
    if images.shape[-1] != channels:
        remedy = (
            "They look like torch's [B, C, H, W]: transpose them with (0, 2, 3, 1)."
            if images.shape[1] == channels
            else f"Create the model with in_channels={images.shape[-1]}, or convert the images."
        )
        raise ImageError(f"Images have shape {tuple(images.shape)}, expected {expected}. {remedy}")
    if min(images.shape[1:3]) < smallest:
        raise ImageError(
            f"Images have shape {tuple(images.shape)}, expected at least {smallest} pixels a side: "
            "smaller ones vanish in the network's pooling. Resize them."
        )
