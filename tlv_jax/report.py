"""Measure what a transfer did, layer by layer."""

import dataclasses
import functools
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tlv_jax.paths import array_leaves
from tlv_jax.plan_text import untouched_table
from tlv_jax.rules import clip
from tlv_jax.tables import format_table
from tlv_jax.transfer import stored_kernel
from tlv_jax.types import Array, Layer, PyTree, Rule, TransferPlan, Untouched

__all__ = ["LayerReport", "TransferReport", "report"]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What one target layer received.

    Attributes:
      target: path of the layer.
      source: path of the layer that gave, None for one drawn from statistics.
      target_shape: `[*spatial', I', O']`.
      source_shape: `[*spatial, I, O]`, None for one drawn from statistics.
      rule: name and settings of what fitted it.
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
                row.source or "(statistics)",
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
    source = array_leaves(src_params, name="src_params")
    before = array_leaves(dst_params, name="dst_params")
    after = array_leaves(new_params, name="new_params")
    shares: dict[tuple[Rule, tuple[int, ...], tuple[int, ...]], float] = {}
    rows = []
    for pair in plan.layer_pairs:
        rule = clip if pair.target.kind == "norm" else plan.rule
        # Which elements come from the source depends on values, how many on shapes alone.
        case = (rule, pair.source.shape, pair.target.shape)
        if case not in shares:
            old = stored_kernel(pair.target, before)
            shares[case] = float(_share(rule, stored_kernel(pair.source, source), old))
        rows.append(_row(pair.target, pair.source, rule, shares[case], before, after))
    rows += [_row(layer, None, "statistics", 0.0, before, after) for layer in plan.drawn]
    return TransferReport(tuple(rows), plan.untouched)


@functools.partial(jax.jit, static_argnums=0)
def _share(rule: Rule, source: Array, target: Array) -> Array:
    """The part of the fitted kernel's elements that move when the source's weights do."""

    def fit(source: Array) -> Array:
        return rule(jax.random.key(0), source, target)

    _, moved = jax.jvp(fit, (source,), (jnp.ones_like(source),))
    return jnp.mean(moved != 0)


def _row(
    target: Layer,
    source: Layer | None,
    rule: Rule | str,
    share: float,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
) -> LayerReport:
    old, new = stored_kernel(target, before), stored_kernel(target, after)
    return LayerReport(
        target=target.path,
        source=source.path if source else None,
        target_shape=target.shape,
        source_shape=source.shape if source else None,
        rule=str(getattr(rule, "__name__", rule)),
        share=share,
        std_before=float(jnp.std(old.astype(jnp.float32))),
        std_after=float(jnp.std(new.astype(jnp.float32))),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
