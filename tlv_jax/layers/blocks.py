"""Standardizations: layers as matchers take them, flat or in blocks.

A standardization is a function `(layers, kinds) -> layers and blocks`. Of all layers of a network,
in execution order, it keeps those whose kind (`conv`, `dense`, `norm`) is among `kinds`. A block is
a tuple of layers and blocks. Blocks are matched with blocks, and then the layers within them.
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


def require_graph(layers: Sequence[Layer], name: str, instead: str = "") -> None:
    """Raises an `OptionError` in the name of what needs traced layers, if they are not."""
    if len(layers) > 1 and not any(layer.inputs for layer in layers):
        raise OptionError(
            f"{name}: needs to know which layer feeds which, but got a bare tree. Pass networks "
            f"from tlv_jax.trace(fn, params, images){instead}."
        )


def standardize_flat(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer, ...]:
    """Flattens to the layers of the given kinds, in order (TLVFC's `FlattenStandardization`)."""
    return tuple(layer for layer in layers if layer.kind in kinds)


def standardize_blocks(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer | Block, ...]:
    """Gathers layers into blocks by the nesting of their modules (DPIAT's `BlocksStandardization`).

    From the innermost module outwards: a module of mostly single layers becomes one block, a module
    of mostly blocks becomes a sequence of blocks, and a block of a single conv or dense layer joins
    the block around it.

    The published code also counts modules without parameters, such as activations. A parameter
    tree does not show them, so blocks can differ at the edges.
    """
    tree: dict[str, Any] = {}
    for layer in standardize_flat(layers, kinds):
        place = tree
        for component in path_components(layer.path):
            place = place.setdefault(component, {})
        # A module may have a kernel of its own beside its parts; no component is empty.
        place[""] = layer
    return tuple(_parts_of(tree, level=0))


def standardize_graph(layers: Sequence[Layer], kinds: Sequence[str]) -> tuple[Layer | Block, ...]:
    """Gathers layers into blocks between the joins of the network's graph.

    A layer joins the block before it if it reads one layer of that block, or if it reads the same
    as the block's first layer, as a parallel branch does. Any other layer starts a new block, such
    as the first after a residual add or a concatenation.

    The published code cuts torch's traced graph at its articulation points. Ours keeps branches
    together.

    Raises:
      OptionError: if the layers were not traced.
    """
    require_graph(layers, "standardize_graph", ", or use standardize_blocks")
    blocks: list[list[Layer]] = []
    members: set[str] = set()
    for layer in layers:
        inputs = set(layer.inputs)
        # The input of a block is where its branches part, which is not among its members.
        follows = len(inputs) == 1 and inputs <= members
        if not blocks or not (follows or inputs == set(blocks[-1][0].inputs)):
            blocks.append([])
            members = set()
        blocks[-1].append(layer)
        members.add(layer.path)
    # Layers of other kinds shape the blocks, and leave them only then.
    chosen = (standardize_flat(block, kinds) for block in blocks)
    return tuple(block[0] if len(block) == 1 else block for block in chosen if block)


def _parts_of(tree: dict[str, Any], level: int) -> Block | list[Layer | Block]:
    """The layers and blocks of a module: a tuple if they are one block, a list otherwise."""
    parts: list[Layer | Block] = []
    for part in tree.values():
        if isinstance(part, Layer):
            parts.append(part)
            continue
        # Levels count the modules around that have several parts, not those that wrap one.
        found = _parts_of(part, level + (len(tree) > 1))
        kernels = [layer for layer in flatten_blocks(found) if layer.kind != "norm"]
        parts += [found] if isinstance(found, tuple) and len(kernels) > 1 else found
    blocks = [part for part in parts if isinstance(part, tuple)]
    if len(blocks) == len(parts) == 1:
        return blocks[0]
    # Mostly single layers make one block. The whole network is none.
    return flatten_blocks(parts) if level > 0 and len(parts) > 2 * len(blocks) else parts
