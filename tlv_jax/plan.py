"""The plan: who gives what to whom, as a record, as a table, and as JSON."""

import dataclasses
import json
from collections import defaultdict
from typing import Any

from tlv_jax import rules
from tlv_jax.consistent.insert import Inserted
from tlv_jax.consistent.plan import Axis, ChannelPlan, LayerChannels, Space
from tlv_jax.errors import OptionError
from tlv_jax.tables import format_table
from tlv_jax.types import Layer, LayerPair, Rule, Untouched

FORMAT = "tlv_jax.TransferPlan/3"
SHOWN = 3  # leaves listed for one reason before the rest is only counted


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """Who gives what to whom. Made by `plan_transfer`, consumed by `apply_transfer`.

    Hashable and compared by value, so it can be a static argument of `jax.jit`. Prints as a table.

    Attributes:
      layer_pairs: the matched layers, in the target's order.
      rule: fits one kernel into another's shape.
      rescale: the standard deviation of each fitted kernel: `none` (as it is), `he` or `source`.
      biases: whether the biases of matched layers are fitted too.
      drawn: target dense layers that are drawn from the source's pooled statistics.
      drawn_from: the source dense layers that are pooled.
      untouched: every other leaf of the target, with the reason.
      source_leaves: `(path, shape)` of each source leaf that the plan reads.
      target_leaves: `(path, shape)` of each target leaf that the plan replaces.
      source_order: how the order of the source's layers was found.
      target_order: how the order of the target's layers was found.
      channels: how channels are chosen for all layers together; None to fit each kernel by itself.
      inserted: layers without a source that are made to change nothing.
    """

    layer_pairs: tuple[LayerPair, ...]
    rule: Rule
    rescale: str
    biases: bool
    drawn: tuple[Layer, ...]
    drawn_from: tuple[Layer, ...]
    untouched: tuple[Untouched, ...]
    source_leaves: tuple[tuple[str, tuple[int, ...]], ...]
    target_leaves: tuple[tuple[str, tuple[int, ...]], ...]
    source_order: str
    target_order: str
    channels: ChannelPlan | None = None
    inserted: tuple[Inserted, ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The matched layers as `(source path, target path)`, in the target's order."""
        return tuple((pair.source.path, pair.target.path) for pair in self.layer_pairs)

    def __str__(self) -> str:
        return _plan_table(self)

    def to_json(self) -> str:
        """Returns the plan as JSON text; `TransferPlan.from_json` reads it back.

        Raises:
          OptionError: if the rule is not one of `tlv_jax.rules`.
        """
        return _plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "TransferPlan":
        """Reads what `to_json` wrote.

        Raises:
          OptionError: if the text is not a plan, or was written by another version.
        """
        return _plan_from_json(text)


def _plan_table(plan: TransferPlan) -> str:
    """The plan as text: one row for each target layer, then what is drawn and what stays."""
    rows = [
        (
            pair.target.path,
            _describe_kernel(pair.target),
            pair.source.path,
            _describe_kernel(pair.source),
        )
        for pair in plan.layer_pairs
    ]
    rows += [
        (layer.path, _describe_kernel(layer), "drawn from statistics", "") for layer in plan.drawn
    ]
    rows += [
        (entry.layer.path, _describe_kernel(entry.layer), f"inserted: {entry.role}", "")
        for entry in plan.inserted
    ]
    table = format_table(("target", "kernel", "source", "kernel"), rows)
    return "\n".join(
        (
            table,
            "",
            *(f"{name}: {fact}" for name, fact in plan_facts(plan).items()),
            untouched_table(plan.untouched),
        )
    )


def plan_facts(plan: TransferPlan) -> dict[str, str]:
    """What holds for all layers of a plan, in words, by name."""
    rescaled = "" if plan.rescale == "none" else f", rescaled: {plan.rescale}"
    facts = {"rule": f"{plan.rule}{rescaled}"}
    if plan.channels is not None:
        share = f"{plan.channels.consistent:.0%} of the axes follow their neighbours"
        facts["channels"] = f"by {plan.channels.rank}, {share}"
    return {**facts, "source": plan.source_order, "target": plan.target_order}


def untouched_table(untouched: tuple[Untouched, ...]) -> str:
    """The leaves that stay as they are, by reason."""
    by_reason = defaultdict(list)
    for leaf in untouched:
        by_reason[leaf.reason].append(leaf.path)
    lines = [f"untouched: {len(untouched)} leaves"]
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        lines.append(f"  {reason}: {', '.join(paths[:SHOWN])}{more}")
    return "\n".join(lines)


def _describe_kernel(layer: Layer) -> str:
    """`3x3, 64 -> 128` for a kernel, `128` for a norm."""
    if layer.kind == "norm":
        return str(layer.shape[0])
    *spatial, inputs, outputs = layer.shape
    size = "x".join(map(str, spatial))
    return f"{size}, {inputs} -> {outputs}" if size else f"{inputs} -> {outputs}"


# Every record in a plan, by its name in JSON.
_RECORDS = {
    record.__name__: record
    for record in (
        *(Layer, LayerPair, Untouched, Inserted),
        *(ChannelPlan, Space, LayerChannels, Axis),
        *rules.LIBRARY,
    )
}


def _plan_to_json(plan: TransferPlan) -> str:
    if type(plan.rule) not in rules.LIBRARY:
        names = ", ".join(rule.__name__ for rule in rules.LIBRARY)
        raise OptionError(
            f"rule {plan.rule} is not one of tlv_jax.rules ({names}), so JSON has no name for it. "
            "Keep the code that makes the plan instead."
        )
    return json.dumps({"format": FORMAT, **_fields(plan)})


def _fields(record: Any) -> dict[str, Any]:
    return {
        field.name: _to_json(getattr(record, field.name)) for field in dataclasses.fields(record)
    }


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"record": type(value).__name__, **_fields(value)}
    return [_to_json(entry) for entry in value] if isinstance(value, tuple) else value


def _plan_from_json(text: str) -> TransferPlan:
    try:
        content = json.loads(text)
        found = content.pop("format")
        if found != FORMAT:
            raise OptionError(
                f"expected a plan of the format {FORMAT!r}, got {found!r}. Make the plan again "
                "with plan_transfer."
            )
        return TransferPlan(**{name: _from_json(value) for name, value in content.items()})
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise OptionError(
            f"the text is not a plan that TransferPlan.to_json wrote ({error!r})."
        ) from error


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {name: _from_json(entry) for name, entry in value.items() if name != "record"}
        return _RECORDS[value["record"]](**fields)
    # JSON has only lists, a plan only tuples.
    return tuple(map(_from_json, value)) if isinstance(value, list) else value
