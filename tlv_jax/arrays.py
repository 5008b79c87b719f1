"""One engine over two libraries: NumPy where all arrays are concrete, `jax.numpy` elsewhere.

A transfer is made once, so compiling would take longer than computing. NumPy compiles nothing.
"""

import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

BLOCK = 1 << 15  # random words in one draw: one size, so that one program serves all


def namespace(key: Any, *arrays: Any) -> ModuleType:
    """NumPy if all arrays are NumPy's and the key is concrete, else `jax.numpy`."""
    concrete = all(isinstance(array, np.ndarray) for array in arrays)
    return np if concrete and not isinstance(key, Tracer) else jnp


def replace(array: Any, index: Any, values: Any) -> Any:
    """A copy of an array with some entries replaced, in its dtype."""
    if isinstance(array, np.ndarray):
        copy = array.copy()
        copy[index] = values
        return copy
    return array.at[index].set(values.astype(array.dtype))


def ascending(values: Any) -> Any:
    """The stable order of the last axis, smallest first. `[..., N] -> positions [..., N]`.

    Args:
      values: float32 or uint32, none negative.
    """
    if not isinstance(values, np.ndarray):
        return jnp.argsort(values, axis=-1, stable=True)
    # The bits of non-negative floats sort as the floats do. Packed into one integer with their
    # positions, they need no stable sort, which is five times slower.
    packed = values.view(np.uint32).astype(np.uint64) << np.uint64(32)
    packed |= np.arange(values.shape[-1], dtype=np.uint64)
    packed.sort(axis=-1)
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int32)


def largest(worth: Any, count: int, xp: ModuleType) -> Any:
    """The positions of the `count` largest values, in their own order. `[N] -> [count]`."""
    # Stable: the first of equal values are kept.
    return xp.sort(xp.argsort(-worth, stable=True)[:count])


def noise(key: Any, shape: tuple[int, ...], xp: ModuleType) -> Any:
    """Random words, the same in NumPy and under `jit`. uint32 `[*shape]`.

    Drawn in blocks of one size: `jax.random` compiles a program for each size.
    """
    count = math.prod(shape)
    blocks = np.arange(-(-count // BLOCK), dtype=np.uint32)
    if xp is np:
        words = np.concatenate([np.asarray(_words(key, block)) for block in blocks])
    else:
        words = jax.vmap(functools.partial(_words, key))(blocks).reshape(-1)
    return words[:count].reshape(shape)


@jax.jit
def _words(key: Any, block: Any) -> Any:
    return jax.random.bits(jax.random.fold_in(key, block), (BLOCK,))
