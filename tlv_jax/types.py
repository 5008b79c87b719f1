"""The records that networks and plans are made of.

All are frozen and hashable, and hold no arrays, so that a plan can be a static argument of
`jax.jit`. Letters: `I` input channels, `O` output channels, `C` channels of a norm. `*spatial`
stands for any number of spatial axes; a dense layer has none.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

Array = jax.Array
PyTree = Any
Kind = Literal["conv", "dense", "norm"]
Rule = Callable[[Array, Array, Array], Array]
"""`(key, source [*spatial, I, O], target [*spatial', I', O']) -> kernel [*spatial', I', O']`."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One conv, dense or norm of a network.

    Attributes:
      path: the layer's place in the tree, joined by `/`: `layer1.0/conv1`.
      kind: `conv`, `dense` or `norm`.
      weight: path of the leaf that holds the kernel, or the scale of a norm.
      shape: the kernel's shape `[*spatial, I, O]`, or `[C]` for a norm. `I` counts the inputs of
        one filter: 1 for a depthwise conv.
      axes: the permutation that takes the stored leaf to `shape`'s order.
      index: position along the leading axes of a parameter stacked for `jax.lax.scan`; else `()`.
      vectors: the layer's other parameters `[O]` or `[C]` as `(name, leaf path)`, sorted by name:
        `bias`, and for a norm the running `mean` and `var` if the tree holds them. Tracing also
        finds the `count` `[]` of batches behind debiased averages.
      groups: the number of feature groups of a conv. Known after tracing only; 1 otherwise.
      strides: the window strides of a conv, per spatial axis. Known after tracing only.
      size: the spatial size of what the layer writes. Known after tracing only.
      inputs: paths of the layers whose outputs reach this one with no other layer between; empty
        for the first layer. Known after tracing only.
      calls: how many times the traced function uses the layer; 1 without tracing.
      own_statistics: whether a norm divides by the deviation of its own input, as group and layer
        norms do, and not by that of a data set. None where it is not known.
    """

    path: str
    kind: Kind
    weight: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    index: tuple[int, ...] = ()
    vectors: tuple[tuple[str, str], ...] = ()
    groups: int = 1
    strides: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    calls: int = 1
    own_statistics: bool | None = None


Block = tuple["Layer | Block", ...]
"""Layers that belong together, in order of execution."""


@dataclasses.dataclass(frozen=True)
class LayerPair:
    """One edge of a plan: the parameters of `source` are fitted into `target`."""

    source: Layer
    target: Layer


@dataclasses.dataclass(frozen=True)
class Untouched:
    """A target leaf that keeps its value, and why."""

    path: str
    reason: str
