"""Measure what a transfer did, layer by layer."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlv_jax.paths import array_leaves, is_array
from tlv_jax.plan import TransferPlan, untouched_table
from tlv_jax.stored import stored_kernel
from tlv_jax.tables import format_table
from tlv_jax.transfer import apply_transfer
from tlv_jax.types import Array, Layer, PyTree, Untouched

__all__ = ["LayerReport", "TransferReport", "report"]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What one target layer received.

    Attributes:
      target: path of the layer.
      source: path of the layer that gave, None for one drawn from statistics or inserted.
      target_shape: `[*spatial', I', O']`.
      source_shape: `[*spatial, I, O]`, likewise None.
      rule: name and settings of what fitted it; `statistics`, or an inserted layer's role.
      share: the part in [0, 1] of the kernel's elements that depend on the source's weights; those
        padded with zeros or kept from the target's initialization do not.
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
    """One row a replaced layer, and the leaves that stayed with the reason. Prints as a table."""

    rows: tuple[LayerReport, ...]
    untouched: tuple[Untouched, ...]

    def __str__(self) -> str:
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
            for row in self.rows
        ]
        header = ("target", "shape", "source", "shape", "from source", "std before", "std after")
        rule = "\n".join(f"rule: {rule}" for rule in dict.fromkeys(row.rule for row in self.rows))
        return "\n".join((format_table(header, cells), "", rule, untouched_table(self.untouched)))

    def to_json(self) -> str:
        """The report as JSON text, its fields by their names."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def report(
    plan: TransferPlan, src_params: PyTree, dst_params: PyTree, new_params: PyTree
) -> TransferReport:
    """Compares a target before and after `apply_transfer`.

    Args:
      plan: the plan that was applied.
      src_params: the source's parameters.
      dst_params: the target's parameters before.
      new_params: what `apply_transfer` returned.
    """
    before = array_leaves(dst_params, name="dst_params")
    after = array_leaves(new_params, name="new_params")
    shares = _shares(plan, src_params, dst_params)
    rows = [
        _row(pair.target, pair.source, shares[pair.target.path], plan, before, after)
        for pair in plan.layer_pairs
    ]
    rows += [_row(layer, None, 0.0, plan, before, after) for layer in plan.drawn]
    rows += [
        dataclasses.replace(_row(entry.layer, None, 0.0, plan, before, after), rule=entry.role)
        for entry in plan.inserted
    ]
    return TransferReport(tuple(rows), plan.untouched)


def _shares(plan: TransferPlan, src_params: PyTree, dst_params: PyTree) -> dict[str, float]:
    """The part of each fitted kernel that comes from the source, by the target's path.

    The transfer is carried out once more with a source of NaN, and the NaN that arrive are counted:
    exact for every rule that moves, pools or scales weights, and it compiles nothing.
    """

    def mark(leaf: Any) -> Any:
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.full(leaf.shape, np.nan, leaf.dtype)
        return leaf

    marked = jax.tree.map(mark, src_params)
    with jax.debug_nans(False):
        new = apply_transfer(plan, jax.random.key(0), marked, dst_params, check_finite=False)
        leaves = array_leaves(new, name="dst_params")
        return {
            pair.target.path: float(jnp.isnan(stored_kernel(pair.target, leaves)).mean())
            for pair in plan.layer_pairs
        }


def _row(
    target: Layer,
    source: Layer | None,
    share: float,
    plan: TransferPlan,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
) -> LayerReport:
    rule = str(plan.rule) if source else "statistics"
    old, new = stored_kernel(target, before), stored_kernel(target, after)
    return LayerReport(
        target=target.path,
        source=source.path if source else None,
        target_shape=target.shape,
        source_shape=source.shape if source else None,
        rule="clip" if target.kind == "norm" else rule,
        share=share,
        std_before=float(jnp.std(old.astype(jnp.float32))),
        std_after=float(jnp.std(new.astype(jnp.float32))),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
