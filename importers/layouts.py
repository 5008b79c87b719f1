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
      to_flax: from torch's axes to Flax's. Torch's first axis, the outputs, becomes the last.
      to_torch: from Flax's axes to torch's.
    """

    to_flax: Callable[[Any], Any]
    to_torch: Callable[[Any], Any]


SAME = Layout(lambda array: array, lambda array: array)
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
        columns = kernel.reshape(outputs, channels, pixels)
        return columns.transpose(2, 1, 0).reshape(pixels * channels, outputs)

    def to_torch(kernel: Any) -> Any:
        outputs, pixels = kernel.shape[1], kernel.shape[0] // channels
        rows = kernel.reshape(pixels, channels, outputs).transpose(1, 0, 2)
        return rows.reshape(channels * pixels, outputs).transpose()

    return Layout(to_flax, to_torch)
