"""The first picture of README.md: who gives what to whom, and what that is worth.

`python -m docs.pictures` draws it. The left half is the plan of a transfer, made from shapes. The
right half has the curves of a comparison of docs/study.md.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import tlv_jax
from benchmarks.coverage import traced
from benchmarks.study import RESULTS, read_study
from tlv_jax.plots.looks import bare, new_figure
from train.compare.table import make_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE, TARGET = "efficientnet_lite0", "mobilenet_v2"
STUDY = "mobilenet_v2_fashion_mnist"
# Colour and name of each curve, and where the name stands.
STARTS = {
    "default": ("#0969da", "from these weights", (11, 0.87)),
    "he": ("#6e7781", "from random weights", (11, 0.55)),
}
INK, EMPTY = "#24292f", "#d0d7de"
FONT = 9.5  # points of an image that is shown at 800 pixels, of 8 inches
GAP, TALL = 1.05, 1.0  # between the two networks, and their height


def save_first_picture(path: Path) -> None:
    """Draws the picture on white, so that it can be read on a dark page too."""
    figure = new_figure(2.75, 8.0)
    draw_plan(figure.add_axes((0.015, 0.03, 0.6, 0.94)))
    draw_curves(figure.add_axes((0.7, 0.165, 0.29, 0.68)))
    pixels = io.BytesIO()
    figure.savefig(pixels)
    # A palette needs a third of the bytes, and looks the same.
    Image.open(pixels).convert("RGB").quantize(256).save(path, optimize=True)


def draw_plan(axes: "Axes") -> None:
    """Each layer is a bar as high as it has channels; one that gets weights has their colour."""
    from matplotlib import colormaps

    source, target = traced(SOURCE), traced(TARGET)
    plan = tlv_jax.plan_transfer(source, target)
    given = {pair.target.path: pair.source.path for pair in plan.layer_pairs}
    above, below = (
        [layer for layer in network.layers if layer.kind != "norm"] for network in (source, target)
    )
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(above)))
    colors = {layer.path: shade for layer, shade in zip(above, shades, strict=True)}
    places = {layer.path: place(number, len(above)) for number, layer in enumerate(above)}
    for layer in above:
        bar(axes, places[layer.path], GAP, height(layer), colors[layer.path], len(above))
    for number, layer in enumerate(below):
        middle = place(number, len(below))
        color = colors[given[layer.path]] if layer.path in given else EMPTY
        bar(axes, middle, 0, -height(layer), color, len(below))
        if layer.path in given:
            ends = (places[given[layer.path]], middle), (GAP - 0.03, 0.03)
            axes.plot(*ends, color=color, linewidth=0.9, solid_capstyle="butt")
    axes.set(xlim=(0, 1), ylim=(-TALL - 0.32, GAP + TALL + 0.32))
    axes.set_axis_off()
    looks = {"fontsize": FONT, "color": INK, "va": "center"}
    axes.text(0, GAP + TALL + 0.16, "EfficientNet-Lite0, trained on ImageNet", **looks)
    axes.text(0, -TALL - 0.16, "MobileNetV2, untrained; or any network of yours", **looks)


def place(number: int, count: int) -> float:
    """The middle of a bar, in [0, 1]."""
    return (number + 0.5) / count


def height(layer: tlv_jax.Layer) -> float:
    """Of a bar, in [0, TALL]: by the logarithm, from 8 channels to 1280."""
    return TALL * np.log2(layer.shape[-1] / 8) / np.log2(1280 / 8)


def bar(axes: "Axes", middle: float, foot: float, high: float, color: object, count: int) -> None:
    """Draws one layer."""
    axes.bar(middle, high, width=0.72 / count, bottom=foot, color=color, linewidth=0)


def draw_curves(axes: "Axes") -> None:
    """Means over seeds on the test images, each start with the learning rate best for it."""
    study = read_study(RESULTS / f"{STUDY}.csv")
    lines = make_table(study.rows, list(STARTS), best_by=study.settings["best_by"])
    for line in lines:
        color, name, end = STARTS[line.start]
        axes.plot(list(line.after), list(line.after.values()), color=color, linewidth=2)
        axes.text(*end, name, color=color, fontsize=FONT)
    axes.set_title(
        "MobileNetV2 on pictures of clothes", fontsize=FONT, color=INK, loc="left", pad=9
    )
    axes.set_xlabel("epoch", fontsize=FONT, color=INK, labelpad=1)
    axes.set_ylabel("balanced accuracy", fontsize=FONT, color=INK)
    axes.set(xlim=(0, 31), ylim=(0.1, 0.92))
    axes.tick_params(labelsize=FONT - 1, colors=INK)
    bare(axes)
