"""Draw a plan as two columns of layers with lines between them."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from tlv_jax.errors import PlanMismatchError
from tlv_jax.matching.scores import shape_scores
from tlv_jax.network import Network, as_networks
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import joined
from tlv_jax.plots.looks import CHARACTER, FONT, WIDTH, new_figure, panels_of, short_labels
from tlv_jax.types import Layer, PyTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

ROWS = 80  # of one panel
PITCH = 0.11  # inches, from row to row
NARROWEST = 2.4  # inches, of a panel
MARGIN = 0.38  # of a panel, at most, for the labels of a column
ABOVE, BELOW = 0.55, 0.65  # inches around the panels
GOOD, FAIR = 0.5, 0.25  # scores at which the style of a line changes
ROLES = {
    "paired": ("o", "black", "gets the weights of a source layer"),
    "drawn": ("s", "black", "drawn from the source's statistics"),
    "inserted": ("D", "black", "inserted, changes nothing"),
    "kept": ("o", "white", "stays as it is"),
}
"""The marker of a target layer, its filling, and what it means."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """One layer of the target: its role, its source and their score if it is paired."""

    path: str
    role: str
    source: str = ""
    score: float = 0.0


def plan(
    plan: TransferPlan,
    src: Network | PyTree,
    dst: Network | PyTree,
    kinds: Collection[str] = ("conv", "dense"),
) -> "Figure":
    """Draws who gives what to whom.

        >>> figure = tlv_jax.plots.plan(tlv_jax.plan_transfer(src, dst), src, dst)

    The right column of each panel has the layers of the target in order of execution, the left one
    the source layers that they take, in theirs. A line's colour and style tell how well the shapes
    of the two fit: the product, over all axes, of the smaller size divided by the larger.

    Args:
      plan: from `plan_transfer`.
      src: as it was given to `plan_transfer`.
      dst: likewise.
      kinds: of the layers that are drawn. Norms are left out by default, as they mostly go with the
        convs before them.

    Raises:
      PackageError: if matplotlib is not installed.
      PlanMismatchError: if the plan is not for these networks, or has no layer of these kinds.
    """
    sources, target = as_networks(src, dst)
    given = [each.path for layers in joined(sources)[0] for each in layers if each.kind in kinds]
    rows = _rows(plan, [layer for layer in target.layers if layer.kind in kinds])
    _check(plan, given, rows, kinds)
    panels = panels_of(len(rows), ROWS)
    height = max(PITCH * (panels[0].stop + 1), 1.0) + ABOVE + BELOW
    width = max(WIDTH, NARROWEST * len(panels))
    figure = new_figure(height, width)
    colors = _colors()
    for number, part in enumerate(panels):
        place = (number / len(panels), BELOW / height, 1 / len(panels))
        axes = figure.add_axes((*place, 1 - (ABOVE + BELOW) / height))
        _draw_panel(axes, rows[part], given, colors, width / len(panels))
    looks = {"ha": "center", "va": "top", "fontsize": FONT + 3}
    figure.text(0.5, 1 - 0.12 / height, _summary(rows, given), **looks)
    _draw_key(figure, colors, {row.role for row in rows}, height, width)
    return figure


def _rows(plan: TransferPlan, layers: Sequence[Layer]) -> list[_Row]:
    pairs = {pair.target.path: pair for pair in plan.layer_pairs}
    roles = {layer.path: "drawn" for layer in plan.drawn}
    roles |= {entry.layer.path: "inserted" for entry in plan.inserted}
    rows = []
    for layer in layers:
        if pair := pairs.get(layer.path):
            score = float(shape_scores([pair.source], [pair.target])[0, 0])
            rows.append(_Row(layer.path, "paired", pair.source.path, score))
        else:
            rows.append(_Row(layer.path, roles.get(layer.path, "kept")))
    return rows


def _summary(rows: Sequence[_Row], given: Sequence[str]) -> str:
    used = [row.source for row in rows if row.role == "paired"]
    return (
        f"{len(used)} of {len(rows)} layers of the target get the weights of {len(set(used))} of "
        f"{len(given)} layers of the source"
    )


def _check(
    plan: TransferPlan, given: Sequence[str], rows: Sequence[_Row], kinds: Collection[str]
) -> None:
    if not rows:
        raise PlanMismatchError(
            f"plots.plan: expected target layers of the kinds {', '.join(kinds)}, got none. Set "
            "other kinds."
        )
    sources = {pair.source.path for pair in plan.layer_pairs if pair.source.kind in kinds}
    targets = {pair.target.path for pair in plan.layer_pairs if pair.target.kind in kinds}
    strange = sorted(sources - set(given)) + sorted(targets - {row.path for row in rows})
    if strange:
        raise PlanMismatchError(
            f"plots.plan: the plan names layer {strange[0]!r}, which src and dst have not. Pass "
            "the networks that the plan was made for."
        )


def _colors() -> "Colormap":
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    # Without the lightest part, which white paper swallows; the best fit is the darkest.
    shades = [colormaps["cividis_r"](0.15 + 0.85 * step / 255) for step in range(256)]
    return ListedColormap(shades)


def _style(score: float) -> Literal["-", "--", ":"]:
    return "-" if score >= GOOD else "--" if score >= FAIR else ":"


def _draw_panel(
    axes: "Axes", rows: Sequence[_Row], given: Sequence[str], colors: "Colormap", width: float
) -> None:
    taken = {row.source for row in rows if row.role == "paired"}
    sources = [path for path in given if path in taken]
    # Few sources stand as far apart as keeps most lines level.
    pitch = len(rows) / max(len(sources), 1)
    heights = {path: pitch * (place + 0.5) - 0.5 for place, path in enumerate(sources)}
    most = int(MARGIN * width / CHARACTER) - 2
    names = short_labels(sources, most), short_labels([row.path for row in rows], most)
    longest = max(map(len, (*names[0], *names[1])))
    left = max(0.2, CHARACTER * (longest + 2) / width)
    right = 1 - left
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -1.5))
    axes.set_axis_off()
    text = {"fontsize": FONT, "va": "center_baseline"}
    for label, path in zip(names[0], sources, strict=True):
        axes.text(left - CHARACTER / width, heights[path], label, ha="right", **text)
        axes.plot(left, heights[path], "o", color="black", markersize=2.5, zorder=3)
    for place, (row, label) in enumerate(zip(rows, names[1], strict=True)):
        axes.text(right + CHARACTER / width, place, label, ha="left", **text)
        if row.role == "paired":
            looks = {"color": colors(row.score), "linestyle": _style(row.score), "linewidth": 1.2}
            axes.plot((left, right), (heights[row.source], place), label=row.path, **looks)
        marker, filling, _ = ROLES[row.role]
        looks = {"color": "black", "markerfacecolor": filling, "markersize": 2.5, "zorder": 3}
        axes.plot(right, place, marker, markeredgewidth=0.5, **looks)
    for place, heading, side in ((left, "source", "right"), (right, "target", "left")):
        axes.text(place, -1, heading, ha=side, va="center", style="italic", fontsize=FONT + 1)


def _draw_key(
    figure: "Figure", colors: "Colormap", roles: Collection[str], height: float, width: float
) -> None:
    """What colours, styles and markers mean, at the foot of the figure."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    place = figure.add_axes((0.3 / width, 0.38 / height, 2.4 / width, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(cmap=colors), cax=place, orientation="horizontal")
    bar.set_label("score of the shapes", fontsize=FONT + 1, labelpad=1)
    bar.ax.tick_params(labelsize=FONT, length=2, pad=1)
    styles = [(f"score {GOOD} or more", GOOD), (f"{FAIR} or more", FAIR), (f"below {FAIR}", 0.0)]
    handles = [
        Line2D([], [], color=colors(score), linestyle=_style(score), label=label)
        for label, score in styles
    ]
    handles += [
        Line2D([], [], color="black", marker=marker, markerfacecolor=filling, ls="", label=label)
        for role, (marker, filling, label) in ROLES.items()
        if role in roles
    ]
    figure.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 0),
        ncols=math.ceil(len(handles) / 3),
        fontsize=FONT + 1,
        frameon=False,
        markerscale=0.6,
    )
