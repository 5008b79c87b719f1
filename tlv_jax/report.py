"""Measure what a transfer did, layer by layer."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.apply import take_kernel
from tlv_jax.errors import OptionError
from tlv_jax.layers.paths import array_leaves, is_array
from tlv_jax.network import Network, is_mixture, params_of
from tlv_jax.plan import TransferPlan, untouched_table
from tlv_jax.tables import format_table
from tlv_jax.transfer import apply_transfer
from tlv_jax.types import Layer, PyTree, Untouched


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What one target layer received.

    Attributes:
      target: path of the layer.
      source: path of its source layer; None if it is drawn from statistics or inserted.
      target_shape: `[*spatial', I', O']`.
      source_shape: `[*spatial, I, O]`, or None.
      rule: the rule with its settings; `statistics`, or the role of an inserted layer.
      share: the part of the kernel's elements, in [0, 1], that depend on the source's weights.
        Padded zeros and the target's initial weights do not.
      std_before: standard deviation of the target's own initial kernel.
      std_after: standard deviation of the new kernel.
    """

    target: str
    source: str | None
    target_shape: tuple[int, ...]
    source_shape: tuple[int, ...] | None
    rule: str
    share: float
    std_before: float
    std_after: float


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """One row for each replaced layer, and why other leaves stayed. Prints as a table."""

    rows: tuple[LayerReport, ...]
    untouched: tuple[Untouched, ...]

    def __str__(self) -> str:
        rule = "\n".join(f"rule: {rule}" for rule in dict.fromkeys(row.rule for row in self.rows))
        table = format_table(*report_cells(self))
        return "\n".join((table, "", rule, untouched_table(self.untouched)))

    def to_json(self) -> str:
        """The report as JSON text; `TransferReport.from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TransferReport":
        """Reads what `to_json` wrote.

        Raises:
          OptionError: if the text is not such a report.
        """
        try:
            content = json.loads(text)
            rows = tuple(_row(**row) for row in content["rows"])
            return cls(rows, tuple(Untouched(**leaf) for leaf in content["untouched"]))
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(
                f"the text is not a report that TransferReport.to_json wrote ({error!r})."
            ) from error


def report_cells(report: TransferReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a report's table."""
    cells = [
        (
            row.target,
            _shape(row.target_shape),
            row.source or f"({row.rule})",
            _shape(row.source_shape or ()),
            f"{row.share:.0%}",
            f"{row.std_before:.4f}",
            f"{row.std_after:.4f}",
        )
        for row in report.rows
    ]
    header = ("target", "shape", "source", "shape", "from source", "std before", "std after")
    return header, cells


def report(
    plan: TransferPlan, src: Network | PyTree, dst: Network | PyTree, new_params: PyTree
) -> TransferReport:
    """Compares a target before and after `apply_transfer`.

        >>> plan = tlv_jax.plan_transfer(src, dst)
        >>> report = tlv_jax.report(plan, src, dst, tlv_jax.transfer(src, dst))
        >>> [(row.target, row.source, row.share) for row in report.rows]
        [('stem', 'stem', 1.0), ('body', 'body', 1.0)]

    Args:
      plan: the plan that was applied.
      src: the source, as it was given to `apply_transfer`.
      dst: the target before the transfer.
      new_params: what `apply_transfer` returned.
    """
    before = _fetched(params_of(dst), "dst")
    after = _fetched(new_params, "new_params")
    shares = _shares(plan, src, dst)
    given = [
        (pair.target, pair.source, "Clip()" if pair.target.kind == "norm" else str(plan.rule))
        for pair in plan.layer_pairs
    ]
    given += [(layer, None, "statistics") for layer in plan.drawn]
    given += [(entry.layer, None, entry.role) for entry in plan.inserted]
    rows = (
        LayerReport(
            target=target.path,
            source=source and source.path,
            target_shape=target.shape,
            source_shape=source and source.shape,
            rule=rule,
            share=shares.get(target.path, 0.0),
            std_before=_spread(target, before),
            std_after=_spread(target, after),
        )
        for target, source, rule in given
    )
    return TransferReport(tuple(rows), plan.untouched)


def _spread(layer: Layer, leaves: dict[str, np.ndarray]) -> float:
    return float(np.std(take_kernel(layer, leaves).astype(np.float32)))


def _fetched(tree: PyTree, name: str) -> dict[str, np.ndarray]:
    """The numbers of a tree by path; a random key has none."""
    leaves = array_leaves(tree, name=name)
    numbers = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.number)}
    return {path: np.asarray(leaf) for path, leaf in jax.device_get(numbers).items()}


def _shares(plan: TransferPlan, src: Network | PyTree, dst: Network | PyTree) -> dict[str, float]:
    """The part of each fitted kernel that comes from the source, by the target's path.

    Transfers once more from a source of NaN, and counts the NaN that arrive. This is exact for
    every rule that moves, pools or scales weights.
    """

    def mark(leaf: Any) -> Any:
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.full(leaf.shape, np.nan, leaf.dtype)
        return leaf

    def marked(network: Network | PyTree) -> PyTree:
        return jax.tree.map(mark, params_of(network))

    mixture = is_mixture(src)
    source = [dataclasses.replace(n, params=marked(n)) for n in src] if mixture else marked(src)
    with jax.debug_nans(False):
        new = apply_transfer(plan, jax.random.key(0), source, dst, check_finite=False)
    leaves = _fetched(new, "dst")
    return {
        pair.target.path: float(np.isnan(take_kernel(pair.target, leaves)).mean())
        for pair in plan.layer_pairs
    }


def _row(target_shape: list[int], source_shape: list[int] | None, **others: Any) -> LayerReport:
    """A row of JSON, which has lists in place of tuples."""
    source = None if source_shape is None else tuple(source_shape)
    return LayerReport(target_shape=tuple(target_shape), source_shape=source, **others)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
