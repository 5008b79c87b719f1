"""Give a kernel as many spatial axes as the target has, before a rule fits it."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np


def change_axes(kernel: Any, spatial: Sequence[int], xp: ModuleType) -> Any:
    """Adds or removes leading spatial axes. `[*S, I, O] -> [*s, I, O]`, of the target's rank.

    New axes have the target's sizes: the kernel is repeated along them and divided by their sizes,
    as in I3D ("Quo Vadis, Action Recognition?", 2017, arXiv 1705.07750). Along extra axes it is
    summed. Either way the result does on inputs that are constant along these axes what the kernel
    did, except where padding cuts them off.

    Args:
      kernel: `[*S, I, O]`.
      spatial: sizes of the target's spatial axes.
      xp: NumPy or `jax.numpy`.
    """
    missing = len(spatial) - (kernel.ndim - 2)
    if missing == 0:
        return kernel
    kernel = kernel.astype(xp.promote_types(kernel.dtype, np.float32), copy=False)
    if missing < 0:
        return kernel.sum(axis=tuple(range(-missing)))
    new = tuple(spatial[:missing])
    return xp.broadcast_to(kernel / np.float32(math.prod(new)), new + kernel.shape)
