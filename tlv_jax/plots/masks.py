"""Draw which features a crossover takes from the support network."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.plots.looks import FONT, new_figure, panels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = 512  # of one panel
TALLEST = 2.0  # inches, of one panel


def crossover(masks: Any) -> "Figure":
    """Draws masks of a crossover: black where a feature comes from the support network.

        >>> features, lent = np.zeros((32, 512)), np.ones((32, 512))
        >>> masks = tlv_jax.crossover(jax.random.key(0), features, lent, rate=0.1)
        >>> figure = tlv_jax.plots.crossover(masks)

    Args:
      masks: `[B, D]`, 1 or True for a feature of the support network, else 0. The crossover of ones
        into zeros, as above, is the mask that its key draws.

    Raises:
      PackageError: if matplotlib is not installed.
      OptionError: if the masks are not `[B, D]` of zeros and ones.
    """
    masks = np.asarray(masks)
    if masks.ndim != 2 or not masks.size or not np.isin(masks, (0, 1)).all():
        raise OptionError(
            f"plots.crossover: expected masks [B, D] of zeros and ones, got shape {masks.shape}. "
            "Pass the crossover of ones into zeros."
        )
    examples, features = masks.shape
    parts = panels_of(features, FEATURES)
    tall = min(TALLEST, max(0.6, 9.0 * examples / parts[0].stop))
    figure = new_figure(0.7 + len(parts) * (tall + 0.35), layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        shown = masks[:, part].astype(float)
        extent = (part.start - 0.5, part.start + shown.shape[1] - 0.5, examples - 0.5, -0.5)
        looks = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axes.imshow(shown, aspect="auto", extent=extent, **looks)
        axes.set_xlim(part.start - 0.5, part.start + parts[0].stop - 0.5)
        axes.set_ylabel("example", fontsize=FONT + 1)
        axes.tick_params(labelsize=FONT + 1)
    figure.supxlabel("feature", fontsize=FONT + 1)
    title = f"{masks.mean():.1%} of {features} features of {examples} examples from the support"
    figure.suptitle(f"{title} (black)", fontsize=FONT + 3, x=0.01, ha="left")
    return figure
