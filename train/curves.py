"""Draw learning curves with matplotlib, which is optional and imported late."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlv_jax.plots.looks import bare, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("loss", "cross-entropy (nats)"),
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Saves `draw_curves` as an image file, whose suffix is the format."""
    draw_curves(runs).savefig(path, dpi=150)


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Draws loss, accuracy and balanced accuracy over epochs.

    Args:
      runs: for each run one record per epoch, with the keys `epoch`, and `train_` and `validation_`
        before each of `loss`, `accuracy` and `balanced_accuracy`.

    Raises:
      PackageError: if matplotlib is not installed.
    """
    figure = new_figure(3.6, 12, layout="constrained")
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(1, len(PANELS))
    for axes, (metric, label) in zip(panels, PANELS, strict=True):
        for number, (name, records) in enumerate(runs.items()):
            epochs = [record["epoch"] for record in records]
            for split, style in (("train", "--"), ("validation", "-")):
                values = [record[f"{split}_{metric}"] for record in records]
                looks = line_style(number) | {"linestyle": style}
                axes.plot(epochs, values, label=f"{name}, {split}", **looks)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        bare(axes)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    return figure
