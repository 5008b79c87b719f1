"""How one parameter's axes stand in torch and in Flax.

Shapes: `I` input and `O` output channels of a layer, `g` its groups, `C` channels of an image.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["CONV", "DENSE", "SAME", "Layout", "dense_after_flatten"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of functions that undo each other.

    Attributes:
      to_flax: from torch's axes to Flax's. Works on any slice of torch's first axis.
      to_torch: from Flax's axes to torch's.
      outputs_axis: where torch's first axis stands in Flax.
    """

    to_flax: Callable[[Any], Any]
    to_torch: Callable[[Any], Any]
    outputs_axis: int = -1


SAME = Layout(lambda array: array, lambda array: array, outputs_axis=0)
"""Axes that stand alike: biases, the vectors of norms, position embeddings."""

CONV = Layout(
    lambda kernel: kernel.transpose(2, 3, 1, 0),
    lambda kernel: kernel.transpose(3, 2, 0, 1),
)
"""`[O, I / g, H, W] <-> [H, W, I / g, O]`, grouped and depthwise kernels alike."""

DENSE = Layout(lambda kernel: kernel.transpose(), lambda kernel: kernel.transpose())
"""`[O, I] <-> [I, O]`."""


def dense_after_flatten(channels: int) -> Layout:
    """The layout of a dense layer that reads a flattened image of `channels` channels.

    `[O, C * P] <-> [P * C, O]`, with the number of pixels `P` taken from the kernel's own shape.
    """

    # torch flattens [C, H, W] and Flax [H, W, C]: the same length in another order, so a missing
    # reorder passes every check of shapes and ruins every logit.
    def to_flax(kernel: Any) -> Any:
        outputs, pixels = kernel.shape[0], kernel.shape[1] // channels
        rows = kernel.transpose().reshape(channels, pixels, outputs)
        return rows.transpose(1, 0, 2).reshape(pixels * channels, outputs)

    def to_torch(kernel: Any) -> Any:
        outputs, pixels = kernel.shape[1], kernel.shape[0] // channels
        rows = kernel.reshape(pixels, channels, outputs).transpose(1, 0, 2)
        return rows.reshape(channels * pixels, outputs).transpose()

    return Layout(to_flax, to_torch)
