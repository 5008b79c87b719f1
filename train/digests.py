"""Digests of arrays, by which a run notices that values have changed."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["digest_of"]


def digest_of(tree: Any, text: str = "") -> str:
    """Returns the SHA-256 of a text and of the values of all arrays of a tree, in hexadecimal.

    It is the same however the arrays are divided over devices. They are looked at one after
    another, each as a whole. Waits for all processes where an array is divided over several.
    """
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        divided = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
        if divided and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
