"""The decisions behind a plan, on shapes alone: pairs, channels, and why leaves stay."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax

from tlv_jax import rules
from tlv_jax.consistent.insert import Inserted, inserted_leaves
from tlv_jax.errors import NoSourceLayerError, OptionError, ParameterTreeError
from tlv_jax.layers.channels import UNKNOWN, ChannelGraph, LayerLabels
from tlv_jax.matching.scores import shape_scores
from tlv_jax.methods import Method
from tlv_jax.network import Network
from tlv_jax.types import Layer, LayerPair, Rule

OTHER_NORM = "its source divides by other statistics: one is a batch norm, the other is not"


def joined(sources: Sequence[Network]) -> tuple[tuple[tuple[Layer, ...], ...], ChannelGraph | None]:
    """The layers of each source, and the channels of all together.

    In a mixture, paths begin with the number of the source.
    """
    if len(sources) == 1:
        return (sources[0].layers,), sources[0].channels
    layers = tuple(
        tuple(_within(layer, f"{number}/") for layer in source.layers)
        for number, source in enumerate(sources)
    )
    graph: dict[str, LayerLabels] = {}
    first = 0  # label of the next source's first channel
    for number, source in enumerate(sources):
        if source.channels is None:
            return layers, None
        largest = UNKNOWN
        for path, labels in source.channels.items():
            largest = max(largest, *labels.reads, *labels.writes)
            graph[f"{number}/{path}"] = dataclasses.replace(
                labels,
                reads=tuple(n if n == UNKNOWN else n + first for n in labels.reads),
                writes=tuple(n if n == UNKNOWN else n + first for n in labels.writes),
            )
        first += largest + 1
    return layers, graph


def _within(layer: Layer, prefix: str) -> Layer:
    """The layer with a prefix before all its paths."""
    return dataclasses.replace(
        layer,
        path=prefix + layer.path,
        weight=prefix + layer.weight,
        vectors=tuple((name, prefix + path) for name, path in layer.vectors),
        inputs=tuple(prefix + path for path in layer.inputs),
    )


def best_pairs(candidates: Sequence[Sequence[LayerPair]]) -> tuple[LayerPair, ...]:
    """For each target layer the pair that fits best by shape; the first of equals."""
    if len(candidates) == 1:
        return tuple(candidates[0])
    best: dict[str, tuple[float, LayerPair]] = {}
    for pairs in candidates:
        for pair in pairs:
            score = float(shape_scores([pair.source], [pair.target])[0, 0])
            if pair.target.path not in best or score > best[pair.target.path][0]:
                best[pair.target.path] = score, pair
    return tuple(pair for _, pair in best.values())


def normalize_alike(pair: LayerPair) -> bool:
    """Whether two norms divide by the same kind of statistics, as far as is known.

    A batch norm takes off again what the bias of the norm before it has added to all images. A
    group or layer norm does not: with biases of batch norms, a network writes nearly the same for
    all images.
    """
    own = {
        False if "var" in dict(layer.vectors) else layer.own_statistics
        for layer in (pair.source, pair.target)
        if layer.kind == "norm"
    }
    return own != {False, True}


def fitted_vectors(pair: LayerPair, biases: bool) -> list[tuple[str, str]]:
    """The vectors of a pair that both sides have, as `(source leaf, target leaf)`."""
    if pair.target.kind != "norm" and not biases:
        return []
    source = {name: path for name, path in pair.source.vectors if name != "count"}
    return [(source[name], path) for name, path in pair.target.vectors if name in source]


def settled_counts(pair: LayerPair) -> list[str]:
    """The target's counter of batches, if it debiases averages that the source replaces."""
    names, given = dict(pair.target.vectors), dict(pair.source.vectors)
    return [names["count"]] if "count" in names and "mean" in given else []


def check_rule(rule: Rule, pairs: Iterable[LayerPair]) -> None:
    """Tries a user's rule on one pair of each rank, without running it.

    Raises:
      OptionError: if it does not return the target's shape.
    """
    if type(rule) in rules.LIBRARY:
        return
    tried: dict[int, LayerPair] = {}
    for pair in pairs:
        if pair.target.kind != "norm":
            tried.setdefault(len(pair.target.shape), pair)
    for pair in tried.values():
        *spatial, _, _ = pair.target.shape
        # As when the plan is applied: with as many axes as the target.
        given = (*spatial, *pair.source.shape)[-len(pair.target.shape) :]
        kernels = (jax.ShapeDtypeStruct(shape, "float32") for shape in (given, pair.target.shape))
        fitted = jax.eval_shape(rule, jax.eval_shape(lambda: jax.random.key(0)), *kernels)
        if getattr(fitted, "shape", None) != pair.target.shape:
            raise OptionError(
                f"rule {rule} returned {getattr(fitted, 'shape', fitted)!r} for source "
                f"{pair.source.path!r} {given} and target {pair.target.path!r} "
                f"{pair.target.shape}; expected an array of the target's shape."
            )


def raise_no_pairs(
    source: Sequence[Layer], wanted: Sequence[Layer], target: Sequence[Layer], kinds: Sequence[str]
) -> None:
    """Raises the error that says why a matching found nothing."""
    names = ", ".join(kinds)
    if not wanted:
        raise ParameterTreeError(
            f"dst: expected layers of the kinds {names}, found {_count_kinds(target)}. Set other "
            "kinds in the method, or pass a network from tlv_jax.trace(fn, params, images)."
        )
    raise NoSourceLayerError(
        f"Target layer {wanted[0].path!r} is a {wanted[0].kind}, but the source has no layer of "
        f"the kinds {names} to give (it has {_count_kinds(source)}). Set other kinds in the "
        "method, or pass a source from tlv_jax.trace(fn, params, images) if its kernels have "
        "unusual names."
    )


def _count_kinds(layers: Sequence[Layer]) -> str:
    kinds = [layer.kind for layer in layers]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "no layers"


def touched_leaves(
    pairs: Sequence[LayerPair],
    biases: bool,
    drawn: Sequence[Layer],
    drawn_from: Sequence[Layer],
    inserted: Sequence[Inserted],
) -> tuple[dict[str, None], dict[str, None]]:
    """The source's leaves that a plan reads and the target's that it replaces, as ordered sets."""
    read = [layer.weight for layer in drawn_from]
    replaced = [path for entry in inserted for path in inserted_leaves(entry)]
    for pair in pairs:
        vectors = fitted_vectors(pair, biases)
        read += [pair.source.weight, *(given for given, _ in vectors)]
        replaced += [pair.target.weight, *(own for _, own in vectors), *settled_counts(pair)]
    for layer in drawn:
        replaced += [layer.weight, *(path for name, path in layer.vectors if name == "bias")]
    return dict.fromkeys(read), dict.fromkeys(replaced)


def reasons_to_stay(
    target: Sequence[Layer],
    matched: set[str],
    method: Method,
    source_kinds: set[str],
    known: Mapping[str, str],
) -> dict[str, str]:
    """Why each leaf of the target's layers would keep its value, by path.

    Args:
      target: all its layers.
      matched: paths of those with a source.
      method: of the plan.
      source_kinds: the kinds of layers in the source.
      known: other reasons, by the layer's path.
    """
    reasons: dict[str, str] = {}
    for layer in target:
        own = rest = "the matching gives it no source"
        if layer.path in matched:
            rest = "the source layer has no such vector"
            if layer.kind != "norm" and "bias" not in method.kinds:
                rest = "biases are not transferred (no 'bias' in kinds)"
        elif layer.kind == "dense" and method.head == "keep":
            own = rest = "head='keep'"
        elif layer.kind == "dense" and "dense" not in method.kinds:
            own = rest = "the source has no dense layers to draw it from"
        elif layer.kind not in method.kinds:
            own = rest = f"{layer.kind} layers are not transferred (no {layer.kind!r} in kinds)"
        elif layer.kind not in source_kinds:
            own = rest = f"the source has no {layer.kind} layers"
        own, rest = (known.get(layer.path, reason) for reason in (own, rest))
        reasons |= {layer.weight: own} | {path: rest for _, path in layer.vectors}
    return reasons
