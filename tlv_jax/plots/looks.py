"""What all figures have in common: their size, their labels, and how lines are told apart."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tlv_jax.errors import PackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
WIDTH = 10.0  # inches
FONT = 6  # points, of what is written once for each layer
CHARACTER = 0.65 * FONT / 72  # inches, the width of one
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X"


def new_figure(
    height: float, width: float = WIDTH, layout: Literal["constrained"] | None = None
) -> "Figure":
    """An empty figure that pyplot does not know.

    Args:
      height: in inches, of which each has 200 pixels.
      width: in inches.
      layout: as matplotlib takes it.

    Raises:
      PackageError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PackageError(
            "plots: expected matplotlib, which is not installed. Install it: "
            "pip install 'tlv-jax[plots]'"
        ) from error
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def line_style(number: int) -> dict[str, Any]:
    """How the line of this number looks: other than its neighbours in black and white too."""
    return {
        "color": f"C{number % 10}",
        # Shifted where the markers begin again: 32 lines differ.
        "linestyle": _STYLES[(number + number // len(_MARKERS)) % len(_STYLES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
    }


def panels_of(count: int, most: int) -> list[slice]:
    """Splits so many things evenly among as few panels as hold at most so many each."""
    size = math.ceil(count / math.ceil(count / most)) if count else 1
    return [slice(first, first + size) for first in range(0, count, size)]


def short_labels(paths: Sequence[str], most: int) -> list[str]:
    """The paths without the names that all begin with, and at most so many last characters."""
    split = [path.split("/") for path in paths]
    shared = 0
    while split and all(
        names[:-1][shared:] and names[shared] == split[0][shared] for names in split
    ):
        shared += 1
    labels = [tail("/".join(names[shared:]), most) for names in split]
    return [label.replace("$", r"\$") for label in labels]  # matplotlib reads $x$ as mathematics


def tail(label: str, most: int) -> str:
    """The last characters of a label that is too long: they differ more than the first."""
    return label if len(label) <= most else f"…{label[1 - most :]}"


def bare(axes: "Axes") -> None:
    """Takes away the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
