"""Standardizations: layers as matchers take them, flat or in blocks.

A standardization is a function `(layers, kinds) -> layers and blocks`. A block is a tuple of layers
and blocks. Blocks are matched with blocks, and then the layers within them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tlv_jax.errors import OptionError
from tlv_jax.layers.paths import path_components
from tlv_jax.types import Block, Layer

Standardize = Callable[[Sequence[Layer], Sequence[str]], Sequence[Layer | Block]]


def flatten_blocks(blocks: Sequence[Layer | Block]) -> tuple[Layer, ...]:
    """All layers of nested blocks, in order."""
    layers: list[Layer] = []
    for block in blocks:
        layers.extend([block] if isinstance(block, Layer) else flatten_blocks(block))
    return tuple(layers)


def standardize_flat(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer, ...]:
    """Flattens to the layers of the given kinds, in order (TLVFC's `FlattenStandardization`).

    Args:
      layers: all layers of a network in execution order.
      kinds: which of `conv`, `dense` and `norm` take part.
    """
    return tuple(layer for layer in layers if layer.kind in kinds)


def standardize_blocks(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer | Block, ...]:
    """Gathers layers into blocks by the nesting of their modules (DPIAT's `BlocksStandardization`).

    From the innermost module outwards: a module of mostly single layers becomes one block, a module
    of mostly blocks becomes a sequence of blocks, and a block of a single conv or dense layer joins
    the block around it.

    The published code also counts modules without parameters, such as activations. A parameter
    tree does not show them, so blocks can differ at the edges.

    Args:
      layers: all layers of a tree in execution order.
      kinds: which of `conv`, `dense` and `norm` take part.

    Returns:
      Layers and blocks in order of execution.
    """
    chosen = [layer for layer in layers if layer.kind in kinds]
    tree: dict[str, Any] = {}
    for layer in chosen:
        place = tree
        for component in path_components(layer.path):
            place = place.setdefault(component, {})
        # A module may have a kernel of its own beside its parts; no component is empty.
        place[""] = layer
    found = _blocks_of(tree, level=0)[2]
    return (found,) if isinstance(found, Layer) else tuple(found)


def standardize_graph(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer | Block, ...]:
    """Gathers layers into blocks between the joins of the network's graph.

    A layer joins the block before it if it reads one layer of that block, or if it reads the same
    as the block's first layer, as a parallel branch does. Any other layer starts a new block, such
    as the first after a residual add or a concatenation.

    The published code cuts torch's traced graph at its articulation points. Ours keeps branches
    together.

    Args:
      layers: of a traced network, in execution order.
      kinds: which of `conv`, `dense` and `norm` take part.

    Returns:
      Blocks in order of execution.

    Raises:
      OptionError: if the layers were not traced.
    """
    if len(layers) > 1 and not any(layer.inputs for layer in layers):
        raise OptionError(
            "standardize_graph: needs to know which layer feeds which, but got a bare tree. Pass "
            "networks from tlv_jax.trace(fn, params, images), or use standardize_blocks."
        )
    blocks: list[list[Layer]] = []
    members: set[str] = set()
    entries: list[frozenset[str]] = []
    for layer in layers:
        inputs = frozenset(layer.inputs)
        follows = len(inputs) == 1 and inputs <= members
        if not blocks or not (follows or inputs in entries):
            blocks.append([])
            members, entries = set(), [inputs]
        blocks[-1].append(layer)
        members.add(layer.path)
    chosen = (tuple(layer for layer in block if layer.kind in kinds) for block in blocks)
    return tuple(block[0] if len(block) == 1 else block for block in chosen if block)


def _blocks_of(tree: dict[str, Any], level: int) -> tuple[int, int, Layer | list[Layer | Block]]:
    """Depth of the nesting (1 for a block of layers), number of convs and dense layers, and parts.

    Args:
      tree: parts of a module by name, each a layer or a tree.
      level: how many modules with several parts stand around this one.
    """
    parts: list[Layer | Block] = []
    kernels = 0
    inner = level if len(tree) == 1 else level + 1
    for part in tree.values():
        if isinstance(part, Layer):
            kernels += part.kind != "norm"
            parts.append(part)
            continue
        depth, count, found = _blocks_of(part, inner)
        kernels += count
        if isinstance(found, Layer):
            parts.append(found)
        elif depth > 1 or count < 2:
            parts.extend(found)
        else:
            parts.append(tuple(found))
    blocks = sum(isinstance(part, tuple) for part in parts)
    depth = 2
    if level > 0 and len(parts) - blocks > blocks:
        parts = [layer for part in parts for layer in ([part] if isinstance(part, Layer) else part)]
        depth = 1
    if len(parts) == 1:
        only = parts[0]
        return 1, kernels, only if isinstance(only, Layer) else list(only)
    return depth, kernels, parts
