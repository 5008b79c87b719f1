"""The order of a parameter's axes in torch and in Flax.

Shapes: `I` input and `O` output channels of a layer, `g` its groups, `C` channels of an image.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["CONV", "DENSE", "SAME", "Layout", "dense_after_flatten"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Two functions that undo each other.

    Attributes:
      to_flax: from torch's axes to Flax's. Torch's first axis, the outputs, becomes the last.
      to_torch: from Flax's axes to torch's.
    """

    to_flax: Callable[[Any], Any]
    to_torch: Callable[[Any], Any]


SAME = Layout(lambda array: array, lambda array: array)
"""Biases, the vectors of norms and position embeddings: the same order in both."""

CONV = Layout(
    lambda kernel: kernel.transpose(2, 3, 1, 0),
    lambda kernel: kernel.transpose(3, 2, 0, 1),
)
"""`[O, I / g, H, W] <-> [H, W, I / g, O]`, also for grouped and depthwise kernels."""

DENSE = Layout(lambda kernel: kernel.transpose(), lambda kernel: kernel.transpose())
"""`[O, I] <-> [I, O]`."""


def dense_after_flatten(channels: int) -> Layout:
    """The layout of a dense layer that reads a flattened image of `channels` channels.

    `[O, C * P] <-> [P * C, O]`; the number of pixels `P` follows from the kernel's shape.
    """

    # torch flattens [C, H, W] and Flax [H, W, C]: the same length in another order. Without the
    # reordering, every shape is right and every logit wrong.
    def to_flax(kernel: Any) -> Any:
        outputs, pixels = kernel.shape[0], kernel.shape[1] // channels
        columns = kernel.reshape(outputs, channels, pixels)
        return columns.transpose(2, 1, 0).reshape(pixels * channels, outputs)

    def to_torch(kernel: Any) -> Any:
        outputs, pixels = kernel.shape[1], kernel.shape[0] // channels
        rows = kernel.reshape(pixels, channels, outputs).transpose(1, 0, 2)
        return rows.reshape(channels * pixels, outputs).transpose()

    return Layout(to_flax, to_torch)
