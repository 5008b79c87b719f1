"""Draw what several trainings reached by epoch, with error bands over seeds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from tlv_jax.errors import OptionError
from tlv_jax.plots.looks import FONT, bare, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(runs: Mapping[str, Any], label: str, confidence: float = 0.95) -> "Figure":
    """Draws the mean over seeds by epoch, and the interval of that mean.

        >>> runs = {"transferred": [[0.6, 0.8], [0.7, 0.8]], "he": [[0.5, 0.6], [0.5, 0.7]]}
        >>> figure = tlv_jax.plots.curves(runs, "accuracy")

    Args:
      runs: by name, what each seed reached after each epoch: `[seeds, epochs]`, or `[epochs]` of
        one. One seed has no interval. Where a seed has NaN, the line has a gap.
      label: what was measured.
      confidence: of the intervals, in (0, 1). They are Student's, for seeds that are independent.

    Raises:
      PackageError: if matplotlib is not installed.
      OptionError: if there are no runs, or an array is not as above.
    """
    if not runs or not 0 < confidence < 1:
        raise OptionError(
            f"plots.curves: expected runs and a confidence in (0, 1), got {len(runs)} runs and "
            f"confidence={confidence}. Pass {{name: [seeds, epochs]}}."
        )
    figure = new_figure(5.0, layout="constrained")
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    for number, (name, run) in enumerate(runs.items()):
        scores = _seeds(name, run)
        epochs, means = np.arange(1, scores.shape[1] + 1), scores.mean(0)
        looks = line_style(number)
        axes.plot(epochs, means, label=f"{name} ({len(scores)})", **looks)
        if len(scores) > 1:
            spread = scores.std(0, ddof=1) / np.sqrt(len(scores))
            margin = stdtrit(len(scores) - 1, (1 + confidence) / 2) * spread
            color, style = looks["color"], looks["linestyle"]
            edges = {"facecolor": (color, 0.12), "edgecolor": (color, 0.6), "linestyle": style}
            axes.fill_between(epochs, means - margin, means + margin, linewidth=0.5, **edges)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bare(axes)
    title = f"mean over seeds, whose number is in brackets, with {confidence:.0%} intervals"
    figure.legend(loc="outside right upper", frameon=False, fontsize=FONT + 2, handlelength=4)
    axes.set_title(title, fontsize=FONT + 2, loc="left")
    return figure


def _seeds(name: str, run: Any) -> np.ndarray:
    """The scores of one name as `[seeds, epochs]`."""
    try:
        scores = np.atleast_2d(np.asarray(run, float))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"plots.curves: {name!r} is no array of numbers ({error}). Pass [seeds, epochs], with "
            "as many epochs of each seed."
        ) from error
    if scores.ndim != 2 or not scores.size:
        raise OptionError(
            f"plots.curves: expected {name!r} of shape [seeds, epochs], got {np.shape(run)}."
        )
    return scores
