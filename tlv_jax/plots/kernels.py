"""Draw the kernels of one pair: which filters a rule keeps, and what the first ones look like."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tlv_jax.apply import take_kernel
from tlv_jax.arrays import layer_key
from tlv_jax.errors import OptionError, PlanMismatchError
from tlv_jax.layers.paths import array_leaves
from tlv_jax.network import Network, is_mixture, params_of
from tlv_jax.plan import TransferPlan
from tlv_jax.plots.looks import FONT, bare, new_figure, panels_of, tail
from tlv_jax.rules import Variance
from tlv_jax.rules.axes import change_axes
from tlv_jax.types import Array, Layer, LayerPair, PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILTERS = 256  # of one panel
SHOWN = 64  # kernels of one grid
LETTERS = 32  # of a layer's path


def variances(
    plan: TransferPlan,
    target: str,
    src: Network | PyTree,
    dst: Network | PyTree,
    key: Array | None = None,
) -> "Figure":
    """Draws the variances by which the variance rule chooses filters for one layer, in their order.

        >>> plan = tlv_jax.plan_transfer(src, dst, tlv_jax.methods.TLVFC)
        >>> figure = tlv_jax.plots.variances(plan, "stem", src, dst)

    Where the source has more filters, its own are ranked, and those that are kept are filled.
    Where it has fewer, the target's are ranked, and those that the source replaces are filled.

    Args:
      plan: made by a method whose rule is `rules.Variance`.
      target: path of the layer in the target.
      src: as it was given to `apply_transfer`, with arrays.
      dst: likewise, before the transfer.
      key: of the transfer, which chooses where the rule does so at random; `jax.random.key(0)` if
        None, as in `transfer`.

    Raises:
      PackageError: if matplotlib is not installed.
      OptionError: if the rule is another one, or channels are chosen for all layers together.
      PlanMismatchError: if the plan has no kernel for such a layer.
    """
    if not isinstance(plan.rule, Variance) or plan.channels is not None:
        raise OptionError(
            f"plots.variances: expected a plan whose rule chooses filters by variance for each "
            f"layer, got {plan.rule} and channels={plan.channels is not None}. Make it with "
            "methods.TLVFC, for example."
        )
    pair = _pair_of(plan, target)
    own = _kernel(pair.target, dst, "dst")
    given = change_axes(_kernel(pair.source, src, "src"), own.shape[:-2], np)
    own_key = layer_key(jax.random.key(0) if key is None else key, pair.target.path)
    values, chosen = plan.rule.ranked_filters(own_key, given, own)
    replaces = given.shape[-1] < own.shape[-1]
    of, word = ("target", "replaced") if replaces else ("source", "kept")
    name = pair.target.path if replaces else pair.source.path
    figure = _ranked(values, chosen, word)
    title = f"filters of {tail(name, LETTERS)} ({of}): {chosen.sum()} of {len(values)} are {word}"
    figure.suptitle(title, fontsize=FONT + 3, x=0.01, ha="left")
    return figure


def _pair_of(plan: TransferPlan, target: str) -> LayerPair:
    kernels = {p.target.path: p for p in plan.layer_pairs if p.target.kind != "norm"}
    if target not in kernels:
        raise PlanMismatchError(
            f"plots.variances: the plan fits no kernel of {target!r}. Pass the second of one of "
            f"plan.pairs, for example {next(iter(kernels), 'none')!r}."
        )
    return kernels[target]


def _kernel(layer: Layer, network: Network | PyTree, name: str) -> np.ndarray:
    """A kernel `[*spatial, I, O]` as an array of NumPy."""
    trees = [params_of(each) for each in (network if is_mixture(network) else [network])]
    leaf = array_leaves(trees if len(trees) > 1 else trees[0], name=name).get(layer.weight)
    if leaf is None or isinstance(leaf, jax.ShapeDtypeStruct):
        came = "no such leaf" if leaf is None else "a jax.ShapeDtypeStruct"
        raise PlanMismatchError(
            f"{name}: expected values at {layer.weight!r}, got {came}. Pass the networks of the "
            "plan, with arrays."
        )
    return np.asarray(take_kernel(layer, {layer.weight: np.asarray(jax.device_get(leaf))}))


def _ranked(values: np.ndarray, chosen: np.ndarray, word: str) -> "Figure":
    """Values in ascending order, in as many panels as they need; the chosen ones filled."""
    order = np.argsort(values, kind="stable")
    parts = panels_of(len(values), FILTERS)
    figure = new_figure(0.7 + 1.15 * len(parts), layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        ranks, ranked = np.arange(len(values))[part], values[order][part]
        filled = chosen[order][part]
        for some, filling, label in ((~filled, "white", f"not {word}"), (filled, "black", word)):
            looks = {"color": "black", "markerfacecolor": filling, "markeredgewidth": 0.5}
            axes.plot(ranks[some], ranked[some], "o", markersize=2.6, label=label, **looks)
        # Ticks along the foot, as points of 2,000 filters are small.
        feet = {"transform": axes.get_xaxis_transform(), "color": "black", "markersize": 3}
        axes.plot(ranks[filled], np.full(filled.sum(), 0.04), "|", **feet)
        axes.margins(y=0.2)
        axes.set_xlim(part.start - 1, part.start + parts[0].stop)
        axes.set_ylabel("variance", fontsize=FONT + 1)
        axes.tick_params(labelsize=FONT + 1)
        bare(axes)
    figure.supxlabel("rank, by ascending variance", fontsize=FONT + 1)
    lines = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    handles = {line.get_label(): line for line in lines if len(line.get_xdata())}  # type: ignore
    figure.legend(
        handles=list(handles.values()), loc="upper right", ncols=2, fontsize=FONT + 1, frameon=False
    )
    return figure


def first_kernels(
    plan: TransferPlan, src: Network | PyTree, dst: Network | PyTree, new_params: PyTree
) -> "Figure":
    """Draws the first conv's kernels: of the source, and of the target before and after.

        >>> plan = tlv_jax.plan_transfer(src, dst)
        >>> new_params = tlv_jax.apply_transfer(plan, jax.random.key(0), src, dst)
        >>> figure = tlv_jax.plots.first_kernels(plan, src, dst, new_params)

    Kernels that read three channels are drawn as colours, any others as the mean over what they
    read. Zero is mid-grey. All three grids have scales of their own, which stand above them.

    Args:
      plan: the plan that was applied.
      src: as it was given to `apply_transfer`.
      dst: the target before the transfer.
      new_params: what `apply_transfer` returned.

    Raises:
      PackageError: if matplotlib is not installed.
      PlanMismatchError: if the plan fits no conv with two spatial axes, or is not of these trees.
    """
    pairs = [p for p in plan.layer_pairs if len(p.target.shape) == len(p.source.shape) == 4]
    if not pairs:
        raise PlanMismatchError(
            "plots.first_kernels: the plan fits no conv with two spatial axes. Pass a plan of two "
            "networks for images."
        )
    source, target = pairs[0].source, pairs[0].target
    grids = {
        f"source: {tail(source.path, LETTERS)}": _kernel(source, src, "src"),
        f"target before: {tail(target.path, LETTERS)}": _kernel(target, dst, "dst"),
        f"target after: {tail(target.path, LETTERS)}": _kernel(target, new_params, "new_params"),
    }
    figure = new_figure(3.9, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr]
    for axes, (title, kernel) in zip(figure.subplots(1, 3), grids.items(), strict=True):
        count = min(kernel.shape[-1], SHOWN)
        picture, scale = _grid(kernel[..., :count].astype(np.float32))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        of = f"{count} of {kernel.shape[-1]}"
        axes.set_title(f"{title}\n{of} filters, ±{scale:.2g}", fontsize=FONT + 1)
    return figure


def _grid(kernel: np.ndarray) -> tuple[Any, float]:
    """Kernels `[h, w, I, O]` side by side, with zero at 0.5, and their largest weight."""
    if kernel.shape[2] != 3:
        kernel = kernel.mean(2, keepdims=True)
    scale = float(np.abs(kernel).max()) or 1.0
    height, width, channels, count = kernel.shape
    side = int(np.ceil(np.sqrt(count)))
    tall = int(np.ceil(count / side))
    picture = np.ones((tall * (height + 1) - 1, side * (width + 1) - 1, channels), np.float32)
    for number in range(count):
        top, left = (number // side) * (height + 1), (number % side) * (width + 1)
        tile = 0.5 + kernel[..., number] / (2 * scale)
        picture[top : top + height, left : left + width] = tile
    return picture[..., 0] if channels == 1 else picture, scale
