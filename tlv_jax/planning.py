"""Decide who gives what to whom, from shapes alone."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax

from tlv_jax import rules
from tlv_jax.blocks import flatten_blocks, standardize_blocks, standardize_graph
from tlv_jax.consistency import ConsistentChannels, plan_channels
from tlv_jax.deepening import Insertions, inserted_leaves, plan_insertions
from tlv_jax.errors import (
    NoSourceLayerError,
    OptionError,
    ParameterTreeError,
    PlanMismatchError,
    check_option,
)
from tlv_jax.matching import Match, match_by_coverage
from tlv_jax.paths import array_leaves
from tlv_jax.plan import TransferPlan
from tlv_jax.scores import shape_scores
from tlv_jax.standardization import find_layers
from tlv_jax.types import Block, Layer, LayerPair, PyTree, Rule, Untouched

__all__ = ["Standardize", "plan_transfer"]

Standardize = Callable[[Sequence[Layer], Sequence[str]], Sequence[Layer | Block]]
KINDS = ("conv", "dense", "norm", "bias")
HEADS = ("statistics", "keep")
RESCALES = ("none", "he", "source")
INSERTS = ("init", "identity")
TRACED = "order of execution, traced"


def plan_transfer(
    src_params: PyTree,
    dst_params: PyTree,
    *,
    src_layers: Sequence[Layer] | None = None,
    dst_layers: Sequence[Layer] | None = None,
    standardize: Standardize | None = None,
    match: Match = match_by_coverage,
    rule: Rule | None = None,
    channels: ConsistentChannels | None = None,
    head: Literal["statistics", "keep"] = "keep",
    rescale: Literal["none", "he", "source"] = "none",
    kinds: Sequence[str] = ("conv",),
    insert: Literal["init", "identity"] = "init",
) -> TransferPlan:
    """Plans a transfer from the shapes of two parameter trees. Nothing is allocated on a device.

    The defaults are those that did best where published and other settings were trained beside each
    other (`benchmarks/ablation.py`): layers are matched by dynamic programming, on blocks if these
    give most of the target a source, kernels clipped, heads left as they are. `tlv_jax.presets` has
    the settings of published methods.

    Args:
      src_params: pretrained parameters, any pytree of arrays or `jax.ShapeDtypeStruct`s. A list of
        such trees is a mixture of several sources: each is matched by itself, and each target layer
        takes the one whose layer fits its shape best, the earlier of equals.
      dst_params: the target's own initial parameters, likewise.
      src_layers: the source's layers as `trace_layers` returns them, for exact order. Without it
        they are found in the tree by name; `plan.source_order` says how they were ordered. Of a
        mixture a list of them, with None for trees whose layers are to be found.
      dst_layers: the target's layers, likewise.
      standardize: `(layers, kinds) -> layers and blocks` for the matcher: `standardize_flat`,
        `standardize_blocks`, or `standardize_graph` for traced layers. If None the last one where
        the layers of all trees were traced, which did best, and otherwise blocks by nesting.
      match: `(source, target) -> pairs`: `match_by_coverage`, `match_by_index`, `match_by_score`,
        `match_by_score_flat`, `match_bipartite`, `match_random`.
      rule: fits a kernel, `(key, source, target) -> kernel`; see `tlv_jax.rules`. `clip` if None.
      channels: choose channels once for all layers that share them, see `ConsistentChannels`. The
        rule then gets a source kernel that has the target's channels, and must keep their places.
      head: `statistics` draws each target dense layer that has no source from the pooled mean and
        standard deviation of the source's dense layers, its bias zero; `keep` leaves it as it is.
      rescale: `none` leaves each fitted kernel as it comes; `he` brings its standard deviation to
        sqrt(2 / fan-in) of its new shape; `source` to that of the source kernel.
      kinds: what is carried over, of `conv`, `dense`, `norm` and `bias`. Vectors (biases; scale,
        bias and running statistics of norms) are fitted by `tlv_jax.rules.clip`, as in DPIAT;
        `bias` means those of matched convs and dense layers.
      insert: what becomes of target layers of `kinds` that the matching gives no source: `init`
        leaves them their initial weights; `identity` makes them change nothing where they can (see
        `tlv_jax.deepening`), and the plan says of the others why not. It needs `channels`, and a
        matching such as `match_each_once` that leaves layers out.

    Returns:
      A frozen, hashable plan.

    Raises:
      ParameterTreeError: if a tree holds no arrays, or the target no layer of `kinds`.
      NoSourceLayerError: if the source has no layer of any kind that the target asks for.
      OptionError: for an unknown kind, head, rescale or insert, identities without `channels`, or a
        rule that does not return the target's shape.
    """
    _check_options(head, rescale, kinds, insert)
    source_leaves = array_leaves(src_params, name="src_params")
    target_leaves = array_leaves(dst_params, name="dst_params")
    target_all, target_order = _layers(dst_layers, dst_params, target_leaves, "dst_params")
    sources = _sources(src_params, src_layers)
    if standardize is None:
        known = all(map(_has_graph, [target_all, *(layers for layers, _ in sources)]))
        standardize = standardize_graph if known else standardize_blocks
    target = standardize(target_all, kinds)
    source_all = tuple(layer for layers, _ in sources for layer in layers)
    source_order = "; ".join(dict.fromkeys(order for _, order in sources))
    standardized = [standardize(layers, kinds) for layers, _ in sources]
    pairs = _best_pairs([match(source, target) for source in standardized])
    if not pairs:
        _raise_no_pairs(source_all, flatten_blocks(target), target_all, kinds)
    bound = rules.bind(rules.clip if rule is None else rule)
    _check_rule(bound, pairs)
    if channels is not None and dict(bound.settings).get("shuffle"):
        raise OptionError(
            f"rule {bound} shuffles channels, which are to be consistent. Bind shuffle=False."
        )

    matched = {pair.target.path for pair in pairs}
    drawn_from = tuple(layer for layer in source_all if layer.kind == "dense")
    added, channels = _insertions(insert, channels, flatten_blocks(target), matched)
    served = matched | {entry.layer.path for entry in added.inserted}
    drawn = tuple(
        layer for layer in target_all if layer.kind == "dense" and layer.path not in served
    )
    if head == "keep" or not drawn_from:
        drawn, drawn_from = (), ()
    biases = "bias" in kinds
    read = [leaf for pair in pairs for leaf in _fitted_leaves(pair, biases)]
    replaced = [target for _, target in read]
    replaced += [path for layer in drawn for path in _drawn_leaves(layer)]
    replaced += [path for entry in added.inserted for path in inserted_leaves(entry)]
    replaced = list(dict.fromkeys(replaced))
    source_kinds = {layer.kind for source in standardized for layer in flatten_blocks(source)}
    reasons = _reasons(target_all, matched, kinds, head, source_kinds, added)
    return TransferPlan(
        layer_pairs=tuple(pairs),
        rule=bound,
        rescale=rescale,
        biases=biases,
        drawn=drawn,
        drawn_from=drawn_from if drawn else (),
        untouched=tuple(
            Untouched(path, reasons.get(path, "not a kernel, norm or bias of a layer"))
            for path in target_leaves
            if path not in set(replaced)
        ),
        source_leaves=_shapes(
            source_leaves,
            [source for source, _ in read] + [layer.weight for layer in drawn_from if drawn],
        ),
        target_leaves=_shapes(target_leaves, replaced),
        source_order=source_order,
        target_order=target_order,
        channels=None if channels is None else plan_channels(pairs, channels),
        inserted=added.inserted,
    )


def _insertions(
    insert: str,
    channels: ConsistentChannels | None,
    layers: Sequence[Layer],
    matched: set[str],
) -> tuple[Insertions, ConsistentChannels | None]:
    """What becomes of layers without a source, and the channels as those pass them on."""
    if insert == "init":
        return Insertions((), {}, {}), channels
    if channels is None:
        raise OptionError(
            "insert='identity': expected channels too, which tell where a layer was inserted. Pass "
            "channels=ConsistentChannels(source_graph, target_graph)."
        )
    added = plan_insertions(layers, matched, channels.target)
    return added, dataclasses.replace(channels, target=added.graph)


def _fitted_leaves(pair: LayerPair, biases: bool) -> list[tuple[str, str]]:
    """The `(source leaf, target leaf)` pairs that fitting one pair of layers reads and replaces."""
    return [(pair.source.weight, pair.target.weight), *fitted_vectors(pair, biases)]


def fitted_vectors(pair: LayerPair, biases: bool) -> list[tuple[str, str]]:
    """The vectors of a pair that both sides have, as `(source leaf, target leaf)`."""
    if pair.target.kind != "norm" and not biases:
        return []
    source = dict(pair.source.vectors)
    return [(source[name], path) for name, path in pair.target.vectors if name in source]


def _drawn_leaves(layer: Layer) -> list[str]:
    return [layer.weight, *(path for name, path in layer.vectors if name == "bias")]


def _check_options(head: str, rescale: str, kinds: Sequence[str], insert: str) -> None:
    check_option("head", head, HEADS)
    check_option("rescale", rescale, RESCALES)
    check_option("insert", insert, INSERTS)
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise OptionError(
            f"kinds={kinds!r}: expected a sequence of some of {', '.join(KINDS)}, "
            "for example ('conv', 'norm')."
        )


def _sources(src_params: PyTree, src_layers: Any) -> list[tuple[tuple[Layer, ...], str]]:
    """The layers of each source, and how their order was found."""
    if not isinstance(src_params, list):
        leaves = array_leaves(src_params, name="src_params")
        return [_layers(src_layers, src_params, leaves, "src_params")]
    traced = [None] * len(src_params) if src_layers is None else src_layers
    if len(traced) != len(src_params):
        raise OptionError(
            f"src_layers: expected one entry for each of the {len(src_params)} sources, got "
            f"{len(traced)}."
        )
    sources = []
    for number, (tree, layers) in enumerate(zip(src_params, traced, strict=True)):
        name = f"src_params[{number}]"
        found, order = _layers(layers, tree, array_leaves(tree, name=name), name)
        sources.append((tuple(_within(layer, f"{number}/") for layer in found), order))
    return sources


def _within(layer: Layer, prefix: str) -> Layer:
    """The layer as it stands in a tree that holds its own tree."""
    return dataclasses.replace(
        layer,
        path=prefix + layer.path,
        weight=prefix + layer.weight,
        vectors=tuple((name, prefix + path) for name, path in layer.vectors),
        inputs=tuple(prefix + path for path in layer.inputs),
    )


def _has_graph(layers: Sequence[Layer]) -> bool:
    """Whether it is known which layer feeds which; of a single one there is nothing to know."""
    return len(layers) < 2 or any(layer.inputs for layer in layers)


def _best_pairs(candidates: Sequence[Sequence[LayerPair]]) -> tuple[LayerPair, ...]:
    """Of several sources' pairs those that fit each target layer's shape best."""
    if len(candidates) == 1:
        return tuple(candidates[0])
    best: dict[str, tuple[float, LayerPair]] = {}
    for pairs in candidates:
        for pair in pairs:
            score = float(shape_scores([pair.source], [pair.target])[0, 0])
            if pair.target.path not in best or score > best[pair.target.path][0]:
                best[pair.target.path] = score, pair
    return tuple(pair for _, pair in best.values())


def _layers(
    traced: Sequence[Layer] | None, tree: PyTree, leaves: dict[str, Any], name: str
) -> tuple[tuple[Layer, ...], str]:
    """The layers of a tree in order, and how that order was found."""
    if traced is None:
        return find_layers(tree, name=name)
    for layer in traced:
        if layer.weight not in leaves:
            raise PlanMismatchError(
                f"{name}: the traced layer {layer.path!r} has its weight at {layer.weight!r}, "
                "which the tree does not have. Trace the function with this very tree."
            )
    return tuple(traced), TRACED


def _check_rule(rule: rules.BoundRule, pairs: Iterable[LayerPair]) -> None:
    """Tries the rule on one pair of each combination of ranks, without running it."""
    tried: set[tuple[int, int]] = set()
    for pair in pairs:
        ranks = len(pair.source.shape), len(pair.target.shape)
        if pair.target.kind == "norm" or ranks in tried:
            continue
        tried.add(ranks)
        source, target = (
            jax.ShapeDtypeStruct(layer.shape, "float32") for layer in (pair.source, pair.target)
        )
        fitted = jax.eval_shape(rule, jax.eval_shape(lambda: jax.random.key(0)), source, target)
        if getattr(fitted, "shape", None) != target.shape:
            raise OptionError(
                f"rule {rule} returned {getattr(fitted, 'shape', fitted)!r} for source "
                f"{pair.source.path!r} {source.shape} and target {pair.target.path!r} "
                f"{target.shape}; expected an array of the target's shape."
            )


def _raise_no_pairs(
    source: Sequence[Layer], wanted: Sequence[Layer], target: Sequence[Layer], kinds: Sequence[str]
) -> None:
    names = ", ".join(kinds)
    if not wanted:
        raise ParameterTreeError(
            f"dst_params: expected layers of the kinds {names}, found "
            f"{_count_kinds(target)}. Pass other `kinds`, or `dst_layers` from trace_layers."
        )
    raise NoSourceLayerError(
        f"Target layer {wanted[0].path!r} is a {wanted[0].kind}, but the source has no layer of "
        f"the kinds {names} to give (it has {_count_kinds(source)}). Pass other `kinds`, or "
        "`src_layers` from trace_layers if the source's kernels have unusual names."
    )


def _count_kinds(layers: Sequence[Layer]) -> str:
    kinds = [layer.kind for layer in layers]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "no layers"


def _reasons(
    target: Sequence[Layer],
    matched: set[str],
    kinds: Sequence[str],
    head: str,
    source_kinds: set[str],
    added: Insertions,
) -> dict[str, str]:
    """Why each leaf of the target's layers would stay as it is."""
    reasons = {}
    for layer in target:
        own = rest = "the matching gives it no source"
        if layer.path in matched:
            rest = "the source layer has no such vector"
            if layer.kind != "norm" and "bias" not in kinds:
                rest = "biases are not carried over (no 'bias' in kinds)"
        elif layer.kind == "dense" and head == "keep":
            own = rest = "head='keep'"
        elif layer.kind == "dense" and "dense" not in kinds:
            own = rest = "the source has no dense layers to draw it from"
        elif layer.kind not in kinds:
            own = rest = f"{layer.kind} layers are not carried over (no {layer.kind!r} in kinds)"
        elif layer.kind not in source_kinds:
            own = rest = f"the source has no {layer.kind} layers"
        own, rest = (added.reasons.get(layer.path, reason) for reason in (own, rest))
        reasons |= {layer.weight: own} | {path: rest for _, path in layer.vectors}
    return reasons


def _shapes(
    leaves: dict[str, Any], paths: Iterable[str]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((path, tuple(leaves[path].shape)) for path in dict.fromkeys(paths))
