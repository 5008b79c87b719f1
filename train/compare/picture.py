"""Draw the curves of a comparison with matplotlib, which is optional and imported late."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.compare.table import Line

__all__ = ["save_bands"]


def save_bands(lines: Sequence[Line], label: str, path: Path) -> None:
    """Draws means over seeds by epoch with their 95% intervals, and classifiers as dashed lines.

    Args:
      lines: of the table.
      label: what the curves are.
      path: of the image; its suffix is the format.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Without pyplot, which would keep the figure alive and may need a display.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, line in enumerate(lines):
        epochs, color = list(line.curve), f"C{number}"
        means = np.array([each.mean for each in line.curve.values()])
        margins = np.nan_to_num([each.margin for each in line.curve.values()])
        if epochs == [0]:
            axes.axhline(means[0], color=color, linestyle="--", label=line.start)
            continue
        axes.plot(epochs, means, color=color, marker="o", markersize=3, label=line.start)
        axes.fill_between(epochs, means - margins, means + margins, color=color, alpha=0.15)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
