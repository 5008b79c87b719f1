"""Draw the curves of a comparison with matplotlib, which is optional and imported late."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlv_jax.plots.looks import bare, line_style, new_figure
from train.compare.table import Line

__all__ = ["save_bands"]


def save_bands(lines: Sequence[Line], label: str, path: Path) -> None:
    """Draws means over seeds by epoch with their 95% intervals, and classifiers as dashed lines.

    Args:
      lines: of the table.
      label: what the curves are.
      path: of the image; its suffix is the format.

    Raises:
      PackageError: if matplotlib is not installed.
    """
    figure = new_figure(4.5, 8, layout="constrained")
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    for number, line in enumerate(lines):
        epochs, looks = list(line.curve), line_style(number)
        color = looks["color"]
        means = np.array([each.mean for each in line.curve.values()])
        margins = np.nan_to_num([each.margin for each in line.curve.values()])
        if epochs == [0]:
            axes.axhline(means[0], color=color, linestyle="--", label=line.start)
            continue
        axes.plot(epochs, means, label=line.start, **looks)
        axes.fill_between(epochs, means - margins, means + margins, color=color, alpha=0.15)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bare(axes)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
