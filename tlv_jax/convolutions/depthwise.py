"""Depthwise convolutions: sums of shifted products."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from tlv_jax.convolutions.window import Shape, Window

UNROLLED = 9  # places of a kernel; more take long to compile, and go row by row
ADDED_AT_ONCE = 8  # rows of an activation, for a kernel's gradient


def depthwise(inputs: Array, kernel: Array, window: Window) -> Array:
    """The sum over a kernel's places of the shifted inputs times the weights there.

    The rules of its gradients are such sums too: what JAX derives from this one is slow.

    Args:
      inputs: `[N, *spatial, C]`.
      kernel: `[*spatial, 1, M * C]`; output `m` is of channel `m // M`.
      window: how the kernel moves.

    Returns:
      `[N, *spatial, M * C]`.
    """
    result: Any = _with_gradients(inputs, kernel, window)
    return result


def _sum_of_products(inputs: Array, kernel: Array, window: Window) -> Array:
    outputs = window.outputs(inputs.shape, kernel.shape)
    rows, *columns = window.visible(inputs.shape, kernel.shape)
    padded = window.pad(_for_each_output(inputs, kernel.shape))

    def row_of_kernel(row: int | Array) -> Array:
        weights = lax.dynamic_index_in_dim(kernel, row, keepdims=False)
        products = [
            window.read(padded, (row, *place), outputs)
            * lax.expand_dims(weights[(*place, 0)], range(padded.ndim - 1))
            for place in itertools.product(*columns)
        ]
        return functools.reduce(lax.add, products)

    if math.prod(map(len, (rows, *columns))) <= UNROLLED:
        return functools.reduce(lax.add, map(row_of_kernel, rows))
    zero = jnp.zeros((len(inputs), *outputs, kernel.shape[-1]), inputs.dtype)
    steps = jnp.arange(rows.start, rows.stop)
    return lax.scan(lambda total, row: (total + row_of_kernel(row), None), zero, steps)[0]


def _forward(inputs: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(inputs, kernel, window), (inputs, kernel)


def _backward(
    window: Window, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    inputs, kernel = operands
    flipped = jnp.flip(kernel, range(kernel.ndim - 2))
    of_inputs = depthwise(gradient, flipped, window.adjoint(inputs.shape, kernel.shape))
    of_inputs = of_inputs.reshape(*inputs.shape, -1).sum(axis=-1)
    inputs = _for_each_output(inputs, kernel.shape)
    return of_inputs, _kernel_gradient(inputs, kernel.shape, gradient, window)


_with_gradients = jax.custom_vjp(_sum_of_products, nondiff_argnums=(2,))
_with_gradients.defvjp(_forward, _backward)


def _for_each_output(inputs: Array, kernel: Shape) -> Array:
    """Repeats each channel for every output that reads it."""
    return jnp.repeat(inputs, kernel[-1] // inputs.shape[-1], axis=-1)


def _kernel_gradient(inputs: Array, kernel: Shape, gradient: Array, window: Window) -> Array:
    """Sums over examples and places of the shifted inputs times the gradient.

    XLA sums what it has not yet stored in a slow loop. So several rows of an activation are added
    in one pass, without a loop, and what is left, an eighth at best, by a matrix product.
    """
    outputs, channels = window.outputs(inputs.shape, kernel), kernel[-1]
    seen = rows, *columns = window.visible(inputs.shape, kernel)
    padded = window.pad(inputs)
    parts = max(n for n in range(1, ADDED_AT_ONCE + 1) if outputs[0] % n == 0)
    gradients = jnp.split(gradient, parts, axis=1)

    def row_of_kernel(row: int | Array) -> Array:
        sums = []
        for place in itertools.product(*columns):
            shifted = jnp.split(window.read(padded, (row, *place), outputs), parts, axis=1)
            sums.append(functools.reduce(lax.add, map(lax.mul, shifted, gradients)))
        partial = jnp.concatenate(sums, axis=-1).reshape(-1, len(sums) * channels)
        return jnp.ones(len(partial), partial.dtype) @ partial

    if math.prod(map(len, (rows, *columns))) <= UNROLLED:
        total = jnp.stack([row_of_kernel(row) for row in rows])
    else:
        total = lax.map(row_of_kernel, jnp.arange(rows.start, rows.stop))
    total = total.reshape(*map(len, seen), 1, channels)
    unseen = [(each.start, size - each.stop) for each, size in zip(seen, kernel, strict=False)]
    return jnp.pad(total, [*unseen, (0, 0), (0, 0)])
