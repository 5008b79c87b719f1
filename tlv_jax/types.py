"""The records that planning hands to applying.

All are frozen and hashable, hold Python values alone and never an array, so that a plan can be a
static argument of `jax.jit`. Letters: `I` input channels, `O` output channels, `C` channels of a
norm; `*spatial` stands for any number of spatial axes, none for a dense layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

__all__ = ["Array", "Kind", "Layer", "LayerPair", "PyTree", "Rule", "TransferPlan", "Untouched"]

Array = jax.Array
PyTree = Any
Kind = Literal["conv", "dense", "norm"]
Rule = Callable[[Array, Array, Array], Array]
"""`(key, source [*spatial, I, O], target [*spatial', I', O']) -> kernel [*spatial', I', O']`."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One conv, dense or norm of a parameter tree.

    Attributes:
      path: where the layer stands, its components joined by `/`: `layer1.0/conv1`.
      kind: `conv`, `dense` or `norm`.
      weight: path of the leaf that holds the kernel, of a norm its scale.
      shape: the kernel's shape as `[*spatial, I, O]`, of a norm `[C]`. `I` counts the inputs of one
        filter, so it is 1 for a depthwise conv.
      axes: the permutation that takes the stored leaf to `shape`'s order.
      index: position along the leading axes of a parameter that `jax.lax.scan` stacks; `()` for one
        that is stored by itself.
      vectors: the layer's other parameters `[O]` or `[C]` as `(name, leaf path)`, sorted by name:
        `bias` and, of a norm, the running `mean` and `var` if the tree holds them.
      groups: the number of feature groups of a conv. Known after tracing only; 1 otherwise.
      strides: the window strides of a conv, one a spatial axis. Known after tracing only.
      inputs: paths of the layers whose outputs reach this one with no other layer between; empty
        for the first layer. Known after tracing only.
      calls: how many times the traced function uses the layer; 1 without tracing.
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
    inputs: tuple[str, ...] = ()
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class LayerPair:
    """One edge of a plan: `source`'s parameters are fitted into `target`'s place."""

    source: Layer
    target: Layer


@dataclasses.dataclass(frozen=True)
class Untouched:
    """A target leaf that keeps its own value, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """Who gives what to whom. Made by `plan_transfer`, consumed by `apply_transfer`.

    Hashable and compared by value, so it can be a static argument of `jax.jit`; `print` shows it as
    a table.

    Attributes:
      layer_pairs: the matched layers, in the target's order.
      rule: fits one kernel into another's shape; its settings are bound by `BoundRule`.
      biases: whether the biases of matched layers are fitted too.
      drawn: target dense layers that are drawn from the source's pooled statistics.
      drawn_from: the source dense layers that are pooled for it.
      untouched: every other leaf of the target, with the reason.
      source_leaves: `(path, shape)` of each source leaf that the plan reads.
      target_leaves: `(path, shape)` of each target leaf that the plan replaces.
      source_order: how the order of the source's layers was found.
      target_order: how the order of the target's layers was found.
    """

    layer_pairs: tuple[LayerPair, ...]
    rule: Rule
    biases: bool
    drawn: tuple[Layer, ...]
    drawn_from: tuple[Layer, ...]
    untouched: tuple[Untouched, ...]
    source_leaves: tuple[tuple[str, tuple[int, ...]], ...]
    target_leaves: tuple[tuple[str, tuple[int, ...]], ...]
    source_order: str
    target_order: str

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The matched layers as `(source path, target path)`, in the target's order."""
        return tuple((pair.source.path, pair.target.path) for pair in self.layer_pairs)

    def __str__(self) -> str:
        from tlv_jax import plan_text

        return plan_text.plan_table(self)

    def to_json(self) -> str:
        """Returns the plan as JSON text; `TransferPlan.from_json` reads it back.

        Raises:
          OptionError: if the rule is not one of `tlv_jax.rules`, or a setting of it is not a
            number, a string or a boolean.
        """
        from tlv_jax import plan_text

        return plan_text.plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "TransferPlan":
        """Reads what `to_json` wrote.

        Raises:
          OptionError: if the text is not a plan, or was written by another version.
        """
        from tlv_jax import plan_text

        return plan_text.plan_from_json(text)
