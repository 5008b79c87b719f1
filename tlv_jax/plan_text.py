"""Write a plan as a table and as JSON, and read the JSON back."""

import dataclasses
import json
from collections import defaultdict
from typing import Any

from tlv_jax import rules
from tlv_jax.errors import OptionError
from tlv_jax.tables import format_table
from tlv_jax.types import Layer, LayerPair, TransferPlan, Untouched

__all__ = ["describe_kernel", "plan_from_json", "plan_table", "plan_to_json", "untouched_table"]

FORMAT = "tlv_jax.TransferPlan/1"
SHOWN = 3  # leaves listed for one reason before the rest is only counted


def plan_table(plan: TransferPlan) -> str:
    """The plan as text: one row a target layer, then what is drawn and what stays."""
    rows = [
        (
            pair.target.path,
            describe_kernel(pair.target),
            pair.source.path,
            describe_kernel(pair.source),
        )
        for pair in plan.layer_pairs
    ]
    rows += [
        (layer.path, describe_kernel(layer), "drawn from statistics", "") for layer in plan.drawn
    ]
    table = format_table(("target", "kernel", "source", "kernel"), rows)
    return "\n".join(
        (
            table,
            "",
            f"rule: {plan.rule}",
            f"source: {plan.source_order}",
            f"target: {plan.target_order}",
            untouched_table(plan.untouched),
        )
    )


def untouched_table(untouched: tuple[Untouched, ...]) -> str:
    """The leaves that stay as they are, gathered by reason."""
    by_reason = defaultdict(list)
    for leaf in untouched:
        by_reason[leaf.reason].append(leaf.path)
    lines = [f"untouched: {len(untouched)} leaves"]
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        lines.append(f"  {reason}: {', '.join(paths[:SHOWN])}{more}")
    return "\n".join(lines)


def describe_kernel(layer: Layer) -> str:
    """`3x3, 64 -> 128` for a kernel, `128` for a norm."""
    if layer.kind == "norm":
        return str(layer.shape[0])
    *spatial, inputs, outputs = layer.shape
    size = "x".join(map(str, spatial))
    return f"{size}, {inputs} -> {outputs}" if size else f"{inputs} -> {outputs}"


def plan_to_json(plan: TransferPlan) -> str:
    """See `TransferPlan.to_json`."""
    rule = plan.rule
    known = isinstance(rule, rules.BoundRule) and _library_rules().get(
        getattr(rule.function, "__name__", "")
    )
    if not isinstance(rule, rules.BoundRule) or known is not rule.function:
        raise OptionError(
            f"rule {rule} is not one of tlv_jax.rules ({', '.join(_library_rules())}), so it has "
            "no name that JSON could hold. Save the settings of plan_transfer instead."
        )
    record = dataclasses.asdict(dataclasses.replace(plan, rule=None))  # type: ignore[arg-type]
    record["rule"] = {"name": rule.function.__name__, "settings": dict(rule.settings)}
    try:
        return json.dumps({"format": FORMAT, **record})
    except TypeError as error:
        raise OptionError(f"rule {rule}: a setting does not fit into JSON ({error}).") from error


def plan_from_json(text: str) -> TransferPlan:
    """See `TransferPlan.from_json`."""
    try:
        record = json.loads(text)
        found = record.pop("format")
        if found != FORMAT:
            raise OptionError(f"expected a plan of the format {FORMAT!r}, got {found!r}.")
        rule = record["rule"]
        function = _library_rules()[rule["name"]]
        return TransferPlan(
            layer_pairs=tuple(
                LayerPair(_layer(pair["source"]), _layer(pair["target"]))
                for pair in record["layer_pairs"]
            ),
            rule=rules.BoundRule(function, tuple(sorted(rule["settings"].items()))),
            biases=record["biases"],
            drawn=tuple(map(_layer, record["drawn"])),
            drawn_from=tuple(map(_layer, record["drawn_from"])),
            untouched=tuple(Untouched(**leaf) for leaf in record["untouched"]),
            source_leaves=_tuples(record["source_leaves"]),
            target_leaves=_tuples(record["target_leaves"]),
            source_order=record["source_order"],
            target_order=record["target_order"],
        )
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise OptionError(
            f"the text is not a plan that TransferPlan.to_json wrote ({error!r})."
        ) from error


def _library_rules() -> dict[str, Any]:
    return {"clip": rules.clip, "variance": rules.variance}


def _layer(record: dict[str, Any]) -> Layer:
    return Layer(**{name: _tuples(value) for name, value in record.items()})


def _tuples(value: Any) -> Any:
    """JSON has lists only, a plan has tuples only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
