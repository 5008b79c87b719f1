"""Draw learning curves with matplotlib, which is optional and imported late."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("loss", "cross-entropy (nats)"),
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws loss, accuracy and balanced accuracy over epochs into an image file.

    Args:
      runs: for each run one record per epoch, with the keys `epoch`, and `train_` and `validation_`
        before each of `loss`, `accuracy` and `balanced_accuracy`.
      path: of the image; its suffix is the format.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Without pyplot, which would keep the figure alive and may need a display.
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS))
    for axes, (metric, label) in zip(panels, PANELS, strict=True):
        for number, (name, records) in enumerate(runs.items()):
            epochs = [record["epoch"] for record in records]
            for split, style in (("train", "--"), ("validation", "-")):
                values = [record[f"{split}_{metric}"] for record in records]
                looks = {"color": f"C{number}", "marker": "o", "markersize": 3}
                axes.plot(epochs, values, style, label=f"{name}, {split}", **looks)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
