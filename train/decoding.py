"""Read one picture file: its pixels, or why it cannot be used, and what to tell the user of it."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from importers.pictures import to_rgb
from tlv_jax.models import ImageError

__all__ = ["Read", "catch_warnings", "read_picture", "resize"]

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow raises

_thread = threading.local()  # .caught: the warnings of the picture that this thread reads


class Read(NamedTuple):
    """What became of a file.

    Attributes:
      pixels: uint8 `[size, size, 3]`; None if the file cannot be used, or was only to be checked.
      notes: what to tell the user of it.
      unreadable: why it is no picture; empty if it is one.
      refused: why its pixels must not be guessed, though it is a picture; empty if it can be used.
    """

    pixels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    unreadable: str = ""
    refused: str = ""


def read_picture(path: Path, size: int | None) -> Read:
    """Reads a picture file and resizes it. Call it inside `catch_warnings`.

    Args:
      path: of the file.
      size: pixels a side; None only checks that all of the file can be decoded.
    """
    _thread.caught = caught = []
    try:
        with Image.open(path) as image:
            upright = to_rgb(image)
            pixels = None if size is None else resize(upright, size)
            transparent = image.has_transparency_data
    except ImageError as error:
        return Read(refused=str(error))
    except UNREADABLE as error:
        return Read(unreadable=str(error))
    finally:
        del _thread.caught
    notes = ["pictures with an alpha channel, laid on white"] if transparent else []
    notes += [f"pictures read in spite of a warning ({caught[0]})"] if caught else []
    return Read(pixels, tuple(notes))


def resize(picture: Image.Image, size: int) -> np.ndarray:
    """Resizes to `[size, size, C]`; C is 1 for a grey picture."""
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return resized if resized.ndim == 3 else resized[..., None]


@contextlib.contextmanager
def catch_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings for the notes of the picture that they are about.

    They do not name the file. `warnings.catch_warnings` catches those of all threads at once and
    cannot be entered by several: this is entered once, around all threads that read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        show = warnings.showwarning

        def keep(message: Warning | str, *rest: Any, **more: Any) -> None:
            if hasattr(_thread, "caught"):
                _thread.caught.append(str(message).strip())
            else:
                show(message, *rest, **more)

        warnings.showwarning = keep
        yield
