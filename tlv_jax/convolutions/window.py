"""How a kernel moves over an activation, and what it meets on its way."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

Shape = tuple[int, ...]


class Window(NamedTuple):
    """How a kernel moves over an activation, axis by axis.

    Attributes:
      strides: steps between two outputs.
      padding: zeros before and after the activation; a negative number crops.
      lhs_dilation: steps between two elements of the activation, zeros in between.
      rhs_dilation: steps between two elements of the kernel.
    """

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Shape
    rhs_dilation: Shape

    def outputs(self, inputs: Shape, kernel: Shape) -> Shape:
        """The spatial sizes of the result."""
        sizes = zip(inputs[1:-1], kernel[:-2], *self, strict=True)
        return tuple(
            (_dilated(n, dilation) + low + high - _dilated(k, spread)) // stride + 1
            for n, k, stride, (low, high), dilation, spread in sizes
        )

    def adjoint(self, inputs: Shape, kernel: Shape) -> "Window":
        """How the flipped kernel moves over the result's gradient, to give the input's."""
        padding = []
        sizes = zip(inputs[1:-1], kernel[:-2], self.outputs(inputs, kernel), *self, strict=True)
        for n, k, m, stride, (low, _), dilation, spread in sizes:
            before = _dilated(k, spread) - 1 - low
            padding.append((before, _dilated(n, dilation) - _dilated(m, stride) + low))
        return Window(self.lhs_dilation, tuple(padding), self.strides, self.rhs_dilation)

    def visible(self, inputs: Shape, kernel: Shape) -> tuple[range, ...]:
        """The kernel's places from the first to the last that meets an input, axis by axis.

        The others meet padding only: most of a 7x7 kernel does on an activation of 2x2. There is at
        least one, so that no sum is empty.
        """
        visible = []
        sizes = zip(inputs[1:-1], kernel[:-2], self.outputs(inputs, kernel), *self, strict=True)
        for n, k, m, stride, (low, _), dilation, spread in sizes:
            elements = range(low, low + _dilated(n, dilation), dilation)
            met = [
                place
                for place in range(k)
                if any(place * spread + output * stride in elements for output in range(m))
            ]
            visible.append(range(met[0], met[-1] + 1) if met else range(1))
        return tuple(visible)

    def pad(self, inputs: Array) -> Array:
        """The activation with its padding and the zeros between its elements."""
        padding = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(self.padding, self.lhs_dilation, strict=True)
        ]
        zero = jnp.zeros((), inputs.dtype)
        return lax.pad(inputs, zero, [(0, 0, 0), *padding, (0, 0, 0)])

    def read(self, padded: Array, place: tuple[int | Array, ...], outputs: Shape) -> Array:
        """What all outputs read at one place of the kernel: `[N, *outputs, C]`."""
        for axis, (at, spread, stride, size) in enumerate(
            zip(place, self.rhs_dilation, self.strides, outputs, strict=True), start=1
        ):
            span = _dilated(size, stride)
            padded = lax.dynamic_slice_in_dim(padded, at * spread, span, axis)
            padded = lax.slice_in_dim(padded, 0, span, stride, axis)
        return padded


def _dilated(size: int, dilation: int) -> int:
    """The size with zeros between the elements."""
    return (size - 1) * dilation + 1
