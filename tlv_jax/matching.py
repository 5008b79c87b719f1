"""Give each target layer a source layer.

A matcher is a function `(source layers, target layers) -> pairs`, on what a standardization
returned; pairs come in the target's order, and a target layer may be left without one.
"""

from collections.abc import Callable, Sequence

from tlv_jax.types import Layer, LayerPair

__all__ = ["Match", "match_by_index"]

Match = Callable[[Sequence[Layer], Sequence[Layer]], tuple[LayerPair, ...]]


def match_by_index(source: Sequence[Layer], target: Sequence[Layer]) -> tuple[LayerPair, ...]:
    """Stretches the source's order over the target's (TLVFC's `IndexMatching`).

    Of `m` source and `n` target layers of a kind, target `i` is given source `round(i * m / n)`,
    halves rounded to even and the last source at most. Kinds are matched apart: a dense layer is
    never given a conv.

    Args:
      source: layers in execution order.
      target: layers in execution order.

    Returns:
      One pair for each target layer of a kind that the source has.
    """
    sources: dict[str, list[Layer]] = {}
    targets: dict[str, int] = {}
    for layer in source:
        sources.setdefault(layer.kind, []).append(layer)
    for layer in target:
        targets[layer.kind] = targets.get(layer.kind, 0) + 1
    seen = dict.fromkeys(targets, 0)
    pairs = []
    for layer in target:
        position = seen[layer.kind]
        seen[layer.kind] += 1
        if candidates := sources.get(layer.kind):
            stretched = round(position * len(candidates) / targets[layer.kind])
            pairs.append(LayerPair(candidates[min(stretched, len(candidates) - 1)], layer))
    return tuple(pairs)
