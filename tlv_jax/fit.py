"""Solve for a target's kernels so that it computes what a source computes.

    new_params = tlv_jax.fit(src, dst, images)
    print(tlv_jax.fit_report(src, dst, images, new_params))

No published method does this. FitNets (ICLR 2015, arXiv 1412.6550) train a student on a teacher's
features; here each layer is solved for, in closed form and without labels.
"""

import dataclasses
import json
from typing import Any

from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.fitting.preparation import Prepared, prepare
from tlv_jax.fitting.settings import DEFAULT, Fit
from tlv_jax.layers.paths import array_leaves
from tlv_jax.network import Network
from tlv_jax.tables import format_table
from tlv_jax.transfer import apply_transfer, plan_transfer
from tlv_jax.types import Array, PyTree


def fit(
    src: Network,
    dst: Network,
    images: Any,
    src_images: Any = None,
    settings: Fit = DEFAULT,
    key: Array | None = None,
) -> PyTree:
    """Solves for the kernels of a target from what a source computes of some unlabelled images.

        >>> new_params = tlv_jax.fit(src, dst, images)
        >>> new_params["body"].shape
        (3, 3, 8, 24)

    The target is transferred to, then walked once in order of execution. At each conv, the images'
    activations are there as the new kernels before it made them. A ridge regression on them gives
    the kernel that best computes what the matched layer of the source computes:

        W = (C_AA + l s I)^-1 (C_AZ + l s W0)

    with the windows A, the goal Z, both centred, the transferred kernel W0, the penalty l and the
    mean variance s of the windows. The norm behind it gets the statistics of the images, and scale
    and bias by regression. What a conv is to compute: the activations of a matched conv, most
    important channels first; or, where it writes to a state that blocks add to, the principal
    components of the source's state, less what the target's holds already.

    A few hundred images are enough. All of the target's layers keep their activations for these
    until they are read, so memory grows with their number. Dense layers, gates and heads are not
    fitted; see `ridge_head` for a head.

    Args:
      src: the source: from `trace`, with arrays, of a function `fn(params, images)`.
      dst: the target, likewise.
      images: `[N, ...]` as the target takes them, normalized as in training.
      src_images: the same images as the source takes them, `[N, ...]`; by default `images`,
        enlarged. They may be larger: the source's activations are averaged onto the target's grids.
      settings: see `Fit`.
      key: random key of the transfer and of the places that are used; `jax.random.key(0)` if None.

    Returns:
      A new tree of the type, structure, shapes and dtypes of the target's parameters.

    Raises:
      OptionError: if a network is a bare tree or a list of several, images are not as above, hold
        one value only, NaN or infinity, or no conv of the target can follow one of the source.
      ParameterTreeError: if a parameter is a `jax.ShapeDtypeStruct`.
      NonFiniteSourceError: if a parameter of the source is NaN or infinite.
    """
    return _fitted(prepare(src, dst, images, src_images, settings, key), src, dst)


def _fitted(prepared: Prepared, src: Network, dst: Network) -> PyTree:
    # Without the warning of `transfer` for unlike networks: here their kernels are only a prior.
    plan = plan_transfer(src, dst, prepared.settings.method)
    start = apply_transfer(plan, prepared.key, src, dst)
    new, _ = prepared.follow(start, solve=True)
    return new


@dataclasses.dataclass(frozen=True)
class FittedLayer:
    """What a fit did to one conv of the target.

    Attributes:
      target: path of the conv.
      source: path of the matched conv of the source; None if the conv has no goal. Then its kernel
        is as transferred, and the norm behind it has the statistics of the images.
      fitted: R^2, the part of the goal's variance that the conv computes with its norm; None
        without a goal. It is measured on the images of the fit, so one near 1 on a grid of a few
        places can be overfitting.
      std_before: standard deviation of what the conv writes with its norm, in the target as given.
      std_after: the same after the fit.
    """

    target: str
    source: str | None
    fitted: float | None
    std_before: float
    std_after: float


@dataclasses.dataclass(frozen=True)
class FitReport:
    """One row for each conv, in order of execution. Prints as a table."""

    rows: tuple[FittedLayer, ...]

    def __str__(self) -> str:
        return f"{format_table(*fit_cells(self))}\n\n{fit_summary(self)}"

    def to_json(self) -> str:
        """The report as JSON text; `FitReport.from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "FitReport":
        """Reads what `to_json` wrote.

        Raises:
          OptionError: if the text is not such a report.
        """
        try:
            return cls(tuple(FittedLayer(**row) for row in json.loads(text)["rows"]))
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(
                f"the text is not a report that FitReport.to_json wrote ({error!r})."
            ) from error


def fit_cells(report: FitReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a report's table."""
    cells = [
        (
            row.target,
            row.source or "(no goal)",
            "" if row.fitted is None else f"{row.fitted:.2f}",
            f"{row.std_before:.3g}",
            f"{row.std_after:.3g}",
        )
        for row in report.rows
    ]
    return ("target", "source", "R^2", "std before", "std after"), cells


def fit_summary(report: FitReport) -> str:
    """How many convs are fitted, and how well on average."""
    fitted = [row.fitted for row in report.rows if row.fitted is not None]
    mean = f", mean R^2 {sum(fitted) / len(fitted):.2f}" if fitted else ""
    return f"{len(fitted)} of {len(report.rows)} convs fitted{mean}"


def fit_report(
    src: Network,
    dst: Network,
    images: Any,
    new_params: PyTree,
    src_images: Any = None,
    settings: Fit = DEFAULT,
    key: Array | None = None,
) -> FitReport:
    """Measures what a fit did, layer by layer.

        >>> report = tlv_jax.fit_report(src, dst, images, tlv_jax.fit(src, dst, images))
        >>> [(row.target, row.source, row.fitted > 0.5) for row in report.rows]
        [('stem', 'stem', True), ('body', 'body', True)]

    Args:
      src: as it was given to `fit`.
      dst: the target before the fit.
      images: of the fit. What a conv is to compute is found again from these.
      new_params: what `fit` returned.
      src_images: as they were given to `fit`.
      settings: of the fit.
      key: of the fit.

    Raises:
      ParameterTreeError: if the new parameters have other leaves or shapes than the target's.
      TLVError: as `fit`.
    """
    prepared = prepare(src, dst, images, src_images, settings, key)
    new, own = (
        {path: leaf.shape for path, leaf in array_leaves(tree, name=name).items()}
        for tree, name in ((new_params, "new_params"), (dst.params, "dst"))
    )
    if new != own:
        raise ParameterTreeError(
            "new_params: expected a tree as fit returned it, got one whose leaves or shapes are "
            "not those of dst. Pass the target that was given to fit."
        )
    return _measured(prepared, dst, new_params)


def fit_and_report(
    src: Network, dst: Network, images: Any, settings: Fit = DEFAULT, key: Array | None = None
) -> tuple[PyTree, FitReport]:
    """Both `fit` and `fit_report` of these arguments, for which the source computes once."""
    prepared = prepare(src, dst, images, None, settings, key)
    new_params = _fitted(prepared, src, dst)
    return new_params, _measured(prepared, dst, new_params)


def _measured(prepared: Prepared, dst: Network, new_params: PyTree) -> FitReport:
    _, before = prepared.follow(dst.params, solve=False)
    _, after = prepared.follow(new_params, solve=False)
    return FitReport(
        tuple(
            FittedLayer(path, met.source, met.fitted, before[path].deviation, met.deviation)
            for path, met in after.items()
        )
    )
