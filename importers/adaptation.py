"""Fit a checkpoint to another number of classes or of image channels."""

import warnings
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from importers.conversion import Entry, entries_of
from importers.families import FAMILIES
from tlv_jax.errors import OptionError

__all__ = ["FreshHeadWarning", "adapt", "adapt_stem", "draw"]


class FreshHeadWarning(UserWarning):
    """The last layer does not come from the checkpoint: it must be trained."""


def adapt(
    name: str,
    model: nn.Module,
    params: dict[str, Any],
    *,
    num_classes: int | None,
    in_channels: int | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and parameters with other numbers of classes or channels, where asked.

    Args:
      name: of the architecture.
      model: of the checkpoint.
      params: of the checkpoint; not changed.
      num_classes: see `importers.load`; `None` keeps the checkpoint's.
      in_channels: likewise.

    Raises:
      OptionError: for a number below 1.
    """
    for option, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number is not None and number < 1:
            raise OptionError(f"{option}={number!r} for {name!r}, expected at least 1.")
    wanted = model.clone(
        num_classes=num_classes or model.num_classes,  # type: ignore[attr-defined]
        in_channels=in_channels or model.in_channels,  # type: ignore[attr-defined]
    )
    if wanted == model:
        return model, params
    leaves = {f"params/{path}": leaf for path, leaf in _flat(params).items()}
    entries, family = entries_of(name, wanted), FAMILIES[name]
    stem = entries[family.stem].leaf
    leaves[stem] = adapt_stem(leaves[stem], wanted.in_channels)  # type: ignore[attr-defined]
    fresh = _leaves_of_other_shape(entries, leaves)
    if fresh:
        leaves |= draw(wanted, fresh)
        warnings.warn(
            f"The checkpoint of {name!r} has {model.num_classes} classes, "  # type: ignore[attr-defined]
            f"{num_classes} were asked for: {', '.join(fresh)} are drawn anew and need training.",
            FreshHeadWarning,
            stacklevel=3,
        )
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    return wanted, tree["params"]


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The first kernel for another number of image channels. `[H, W, I, O] -> [H, W, C, O]`.

    One channel gets the sum, so that a grey image gives what its three equal channels gave. More
    repeat the channels in their order and are rescaled by `I / C`, which keeps the size of the
    activations. As `timm.models.adapt_input_conv` does.
    """
    given = kernel.shape[2]
    if channels == given:
        return kernel
    wide = kernel.astype(np.promote_types(kernel.dtype, np.float32))
    if channels == 1:
        return wide.sum(2, keepdims=True).astype(kernel.dtype)
    repeated = np.take(wide, np.arange(channels) % given, axis=2)
    return (repeated * np.float32(given / channels)).astype(kernel.dtype)


def _leaves_of_other_shape(entries: Any, leaves: dict[str, Any]) -> list[str]:
    shapes: dict[str, Entry] = {entry.leaf: entry for entry in entries.values()}
    return sorted(
        leaf
        for leaf, array in leaves.items()
        if shapes[leaf].layout.to_torch(array).shape != shapes[leaf].shape
    )


def draw(model: nn.Module, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Draws some leaves as the network's initialization does; the compiler drops all others.

    Args:
      model: the network.
      wanted: paths such as `params/fc/kernel`.
    """
    side = getattr(model, "image_size", 224)
    images = jnp.zeros((1, side, side, model.in_channels))  # type: ignore[attr-defined]

    @jax.jit
    def initialize(key: jax.Array) -> dict[str, jax.Array]:
        leaves = _flat(model.init(key, images))
        return {leaf: leaves[leaf] for leaf in wanted}

    return jax.tree.map(np.asarray, initialize(jax.random.key(0)))


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")
