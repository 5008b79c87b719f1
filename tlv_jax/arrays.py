"""One engine over two libraries: NumPy where all arrays are concrete, `jax.numpy` elsewhere.

A transfer is made once, so compiling would take longer than computing. NumPy compiles nothing.
"""

import functools
import math
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.errors import OptionError

BLOCK = 1 << 15  # random words in one draw: one size, so that one program serves all


def namespace(key: Any, *arrays: Any) -> ModuleType:
    """NumPy if all arrays are NumPy's and the key is concrete, else `jax.numpy`."""
    concrete = all(isinstance(array, np.ndarray) for array in arrays)
    return np if concrete and not isinstance(key, Tracer) else jnp


def row_batches(count: int, size: int) -> Iterator[np.ndarray]:
    """The rows of each batch. The last is filled up with the last row: all have one shape."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def replace(array: Any, index: Any, values: Any) -> Any:
    """A copy of an array with some entries replaced, in its dtype."""
    if isinstance(array, np.ndarray):
        copy = array.copy()
        copy[index] = values
        return copy
    return array.at[index].set(values.astype(array.dtype))


def placed(array: np.ndarray, like: Any) -> Any:
    """The array in NumPy or on devices, as another one is."""
    if not isinstance(like, jax.Array):
        return np.ascontiguousarray(array)
    return jax.device_put(array, like.sharding if like.committed else None)


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


def check_key(key: Any) -> None:
    """Checks that a key is one random key, of either kind that JAX has.

    Raises:
      OptionError: if it is not.
    """
    if isinstance(key, jax.Array | np.ndarray):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == 0 if typed else key.ndim == 1 and key.dtype == np.uint32:
            return
        came = f"an array {key.dtype} of shape {key.shape}. For several keys, use jax.vmap."
    else:
        came = f"{key!r}."
    raise OptionError(f"key: expected one random key, jax.random.key(seed), got {came}")


def fold_in(key: Any, number: int) -> Any:
    """`jax.random.fold_in`, allowed under `jax.transfer_guard("disallow")`."""
    return jax.random.fold_in(key, jax.device_put(np.uint32(number)))


def layer_key(key: Any, path: str) -> Any:
    """A layer's own random key, whichever other layers there are."""
    # Python's own hash differs between processes.
    return fold_in(key, zlib.crc32(path.encode()))


def fetched(array: Any, xp: ModuleType) -> Any:
    """What was drawn by JAX, as an array of `xp`."""
    return jax.device_get(array) if xp is np else array


def noise(key: Any, shape: tuple[int, ...], xp: ModuleType) -> Any:
    """Random words, the same in NumPy and under `jit`. uint32 `[*shape]`.

    Drawn in blocks of one size: `jax.random` compiles a program for each size.
    """
    count = math.prod(shape)
    blocks = np.arange(-(-count // BLOCK), dtype=np.uint32)
    if xp is np:
        drawn = [_words(key, jax.device_put(block)) for block in blocks]
        words = np.concatenate(jax.device_get(drawn))
    else:
        words = jax.vmap(functools.partial(_words, key))(blocks).reshape(-1)
    return words[:count].reshape(shape)


@jax.jit
def _words(key: Any, block: Any) -> Any:
    return jax.random.bits(jax.random.fold_in(key, block), (BLOCK,))
