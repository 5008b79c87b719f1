"""A random key for each layer, as its words: a program that is given these starts sooner."""

import zlib
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.types import Array

__all__ = ["layer_keys", "typed_key"]


def layer_keys(key: Array, paths: Sequence[str]) -> tuple[Hashable, dict[str, Array]]:
    """A key for each layer, from a hash of its path that is the same in every process.

    Returns:
      The type of the keys, None if the given one is raw, and their words by path.
    """
    hashes = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32)
    words, key_type = _fold_in(key, hashes), None
    if jnp.issubdtype(words.dtype, jax.dtypes.prng_key):
        key_type, words = jax.random.key_impl(words), jax.random.key_data(words)
    if not isinstance(words, Tracer):
        # On the host: taken apart on the device, each would cost more than fitting a kernel.
        words = np.asarray(words)
    return key_type, dict(zip(paths, words, strict=True))


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))


def typed_key(words: Array, key_type: Hashable) -> Array:
    """A random key of its words; these themselves if `key_type` is None."""
    return words if key_type is None else jax.random.wrap_key_data(words, impl=key_type)
