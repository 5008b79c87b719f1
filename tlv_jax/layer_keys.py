"""A random key for each layer, as its words: a program that is given these starts sooner."""

import zlib
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.types import Array

__all__ = ["key_words", "layer_keys", "typed_key"]


def layer_keys(key: Array, paths: Sequence[str]) -> tuple[Hashable, dict[str, Array]]:
    """A key for each layer, from a hash of its path that is the same in every process.

    Returns:
      The type of the keys, None if the given one is raw, and their words by path.
    """
    hashes = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32)
    words, key_type = key_words(_fold_in(key, hashes))
    return key_type, dict(zip(paths, words, strict=True))


def key_words(keys: Array) -> tuple[Array | np.ndarray, Hashable]:
    """The words of random keys, and their type, None if they are raw."""
    key_type = None
    if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        key_type, keys = jax.random.key_impl(keys), jax.random.key_data(keys)
    # On the host: taken apart on the device, each would cost more than fitting a kernel.
    return (keys if isinstance(keys, Tracer) else np.asarray(keys)), key_type


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))


def typed_key(words: Array, key_type: Hashable) -> Array:
    """A random key of its words; these themselves if `key_type` is None."""
    return words if key_type is None else jax.random.wrap_key_data(words, impl=key_type)
