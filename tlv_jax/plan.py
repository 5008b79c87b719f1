"""The plan: who gives what to whom, as a record, as a table, and as JSON."""

import dataclasses
import json
from collections import defaultdict
from typing import Any

from tlv_jax import rules
from tlv_jax.consistency import Axis, ChannelPlan, LayerChannels, Space, Table
from tlv_jax.deepening import Inserted
from tlv_jax.errors import OptionError
from tlv_jax.tables import format_table
from tlv_jax.types import Layer, LayerPair, Rule, Untouched

__all__ = ["TransferPlan", "untouched_table"]

FORMAT = "tlv_jax.TransferPlan/2"
SHOWN = 3  # leaves listed for one reason before the rest is only counted


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """Who gives what to whom. Made by `plan_transfer`, consumed by `apply_transfer`.

    Hashable and compared by value, so it can be a static argument of `jax.jit`; `print` shows it as
    a table.

    Attributes:
      layer_pairs: the matched layers, in the target's order.
      rule: fits one kernel into another's shape; its settings are bound by `BoundRule`.
      rescale: to what standard deviation each fitted kernel is brought: `none` (as it comes), `he`
        or `source`.
      biases: whether the biases of matched layers are fitted too.
      drawn: target dense layers that are drawn from the source's pooled statistics.
      drawn_from: the source dense layers that are pooled for it.
      untouched: every other leaf of the target, with the reason.
      source_leaves: `(path, shape)` of each source leaf that the plan reads.
      target_leaves: `(path, shape)` of each target leaf that the plan replaces.
      source_order: how the order of the source's layers was found.
      target_order: how the order of the target's layers was found.
      channels: how channels are chosen for all layers together; None if each kernel is fitted by
        itself.
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
          OptionError: if the rule is not one of `tlv_jax.rules`, or a setting of it is not a
            number, a string or a boolean.
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
    """The plan as text: one row a target layer, then what is drawn and what stays."""
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
            f"rule: {plan.rule}"
            + ("" if plan.rescale == "none" else f", rescaled: {plan.rescale}"),
            *_channels_line(plan.channels),
            f"source: {plan.source_order}",
            f"target: {plan.target_order}",
            untouched_table(plan.untouched),
        )
    )


def _channels_line(channels: ChannelPlan | None) -> list[str]:
    if channels is None:
        return []
    share = f"{channels.consistent:.0%} of the axes follow their neighbours"
    return [f"channels: by {channels.rank}, {share}"]


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


def _describe_kernel(layer: Layer) -> str:
    """`3x3, 64 -> 128` for a kernel, `128` for a norm."""
    if layer.kind == "norm":
        return str(layer.shape[0])
    *spatial, inputs, outputs = layer.shape
    size = "x".join(map(str, spatial))
    return f"{size}, {inputs} -> {outputs}" if size else f"{inputs} -> {outputs}"


def _plan_to_json(plan: TransferPlan) -> str:
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


def _plan_from_json(text: str) -> TransferPlan:
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
            rescale=record["rescale"],
            biases=record["biases"],
            drawn=tuple(map(_layer, record["drawn"])),
            drawn_from=tuple(map(_layer, record["drawn_from"])),
            untouched=tuple(Untouched(**leaf) for leaf in record["untouched"]),
            source_leaves=_tuples(record["source_leaves"]),
            target_leaves=_tuples(record["target_leaves"]),
            source_order=record["source_order"],
            target_order=record["target_order"],
            channels=record["channels"] and _channels(record["channels"]),
            inserted=tuple(
                Inserted(_layer(entry["layer"]), entry["role"], _tuples(entry["constants"]))
                for entry in record.get("inserted", ())  # which older plans do not have
            ),
        )
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise OptionError(
            f"the text is not a plan that TransferPlan.to_json wrote ({error!r})."
        ) from error


def _library_rules() -> dict[str, Any]:
    return {name: getattr(rules, name) for name in rules.RULES}


def _layer(record: dict[str, Any]) -> Layer:
    return Layer(**{name: _tuples(value) for name, value in record.items()})


def _channels(record: dict[str, Any]) -> ChannelPlan:
    def table(record: dict[str, Any]) -> Table:
        return Table(_tuples(record["shape"]), record["data"])

    def axis(record: dict[str, Any]) -> Axis:
        return Axis(
            space=table(record["space"]),
            channel=table(record["channel"]),
            places=tuple((number, table(places)) for number, places in record["places"]),
            occurrence=table(record["occurrence"]),
            own=record["own"],
        )

    spaces = [{name: _tuples(value) for name, value in s.items()} for s in record["spaces"]]
    layers = [
        LayerChannels(**{**layer, "reads": axis(layer["reads"]), "writes": axis(layer["writes"])})
        for layer in record["layers"]
    ]
    return ChannelPlan(
        rank=record["rank"],
        grow=record["grow"],
        spaces=tuple(Space(**space) for space in spaces),
        layers=tuple(layers),
        consistent=record["consistent"],
    )


def _tuples(value: Any) -> Any:
    """JSON has lists only, a plan has tuples only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
