"""Draw one number for each layer of a target, in order of execution."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.fit import FitReport
from tlv_jax.plots.looks import CHARACTER, FONT, bare, new_figure, panels_of, short_labels
from tlv_jax.report import TransferReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 80  # layers of one panel
PLOT = 1.7  # inches, the height of a panel without the names of its layers
LETTERS = 30  # of a name
LOWEST = -1.0  # R^2; what is lower is drawn here


def deviations(report: TransferReport) -> "Figure":
    """Draws the standard deviation of each kernel before and after a transfer, on a log scale.

        >>> plan = tlv_jax.plan_transfer(src, dst)
        >>> report = tlv_jax.report(plan, src, dst, tlv_jax.transfer(src, dst))
        >>> figure = tlv_jax.plots.deviations(report)

    Args:
      report: from `tlv_jax.report`. Norms are left out.

    Raises:
      PackageError: if matplotlib is not installed.
      OptionError: if the report has no kernel.
    """
    rows = [row for row in report.rows if len(row.target_shape) > 1]
    figure, panels = _panels([row.target for row in rows], "TransferReport")
    before, after = (np.array([getattr(row, name) for row in rows]) for name in _STD)
    spread = np.concatenate([before, after])
    spread = spread[spread > 0] if (spread > 0).any() else np.ones(1)
    lowest, highest = spread.min() / 2, spread.max() * 2
    for axes, part in panels:
        places = np.arange(len(before[part]))
        axes.set_yscale("log")
        axes.set_ylim(lowest, highest)
        ends = np.maximum(before[part], lowest), np.maximum(after[part], lowest)
        axes.vlines(places, *ends, colors="0.6")
        _markers(axes, before[part], lowest, ("o", "white", 5), "before")
        _markers(axes, after[part], lowest, ("D", "black", 2.5), "after")
        axes.set_ylabel("standard deviation")
    _legend(figure, "standard deviation of each kernel of the target")
    return figure


_STD = "std_before", "std_after"


def fitted(report: FitReport) -> "Figure":
    """Draws how well each conv computes what it was fitted to: R^2, which is 1 at best.

        >>> row = tlv_jax.FittedLayer("stem", "stem", fitted=0.9, std_before=1.2, std_after=1.0)
        >>> figure = tlv_jax.plots.fitted(tlv_jax.FitReport((row,)))

    Args:
      report: from `tlv_jax.fit_report`.

    Raises:
      PackageError: if matplotlib is not installed.
      OptionError: if the report has no layer.
    """
    figure, panels = _panels([row.target for row in report.rows], "FitReport")
    values = np.array([np.nan if row.fitted is None else row.fitted for row in report.rows])
    lowest = max(min(0.0, np.nanmin(values, initial=0.0)), LOWEST)
    for axes, part in panels:
        shown = values[part]
        places = np.arange(len(shown))
        clipped = np.where(shown < LOWEST, LOWEST, shown)
        axes.vlines(places, 0, np.nan_to_num(clipped), colors="0.6")
        axes.plot(places, clipped, "o", color="black", markersize=3, label="fitted")
        low, goalless = places[shown < LOWEST], places[np.isnan(shown)]
        axes.plot(low, np.full(len(low), LOWEST), "kv", markersize=5, label=f"below {LOWEST:g}")
        axes.plot(goalless, np.zeros(len(goalless)), "kx", markersize=4, label="no goal")
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set_ylim(lowest - 0.08, 1.05)
        axes.set_ylabel("R²")
    of = f"{np.isfinite(values).sum()} of {len(values)}"
    mean = f", mean R² {np.nanmean(values):.2f}" if np.isfinite(values).any() else ""
    _legend(figure, f"{of} convs fitted{mean}")
    return figure


def _panels(paths: Sequence[str], name: str) -> "tuple[Figure, list[tuple[Axes, slice]]]":
    """A figure with one panel above the other, whose ticks are the layers."""
    if not paths:
        raise OptionError(f"plots: the {name} has no layer to draw. Pass one of a transfer or fit.")
    labels = short_labels(paths, LETTERS)
    parts = panels_of(len(paths), COLUMNS)
    names = CHARACTER * max(map(len, labels)) + 0.25
    figure = new_figure(0.5 + len(parts) * (PLOT + names), layout="constrained")
    panels = figure.subplots(len(parts), squeeze=False)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        shown = labels[part]
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=FONT)
        # Panels of fewer layers have the same distances.
        axes.set_xlim(-0.7, parts[0].stop - 0.3)
        axes.tick_params(axis="y", which="both", labelsize=FONT + 1)
        axes.yaxis.label.set_fontsize(FONT + 1)
        axes.grid(axis="y", linewidth=0.3)
        bare(axes)
    return figure, list(zip(panels, parts, strict=True))


def _markers(
    axes: "Axes", values: np.ndarray, lowest: float, look: tuple[str, str, float], label: str
) -> None:
    """Draws values; zeros as a cross at the foot, where a log scale has no place for them."""
    places, some = np.arange(len(values)), values > 0
    marker, filling, size = look
    black = {"color": "black", "markeredgewidth": 0.6, "markersize": size}
    axes.plot(places[some], values[some], marker, markerfacecolor=filling, label=label, **black)
    if not some.all():
        cross = "+" if filling == "black" else "x"
        at_foot = np.full((~some).sum(), lowest)
        axes.plot(places[~some], at_foot, cross, clip_on=False, label=f"{label}: 0", **black)


def _legend(figure: "Figure", title: str) -> None:
    figure.suptitle(title, fontsize=FONT + 3, x=0.01, ha="left")
    drawn = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    handles = {line.get_label(): line for line in drawn if len(line.get_xdata())}  # type: ignore
    looks = {"ncols": 4, "fontsize": FONT + 1, "frameon": False}
    figure.legend(handles=list(handles.values()), loc="upper right", **looks)
