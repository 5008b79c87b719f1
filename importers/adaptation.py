"""Fit a checkpoint to another number of classes or of image channels."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from importers.entries import Entry, entries_of, model_of
from importers.explaining import shortened
from importers.families import FAMILIES

__all__ = ["FreshHeadWarning", "adapt", "adapt_stem", "initialize", "with_classifier"]


class FreshHeadWarning(UserWarning):
    """The classifier is re-initialized rather than loaded: it needs training."""


def with_classifier(
    name: str, arrays: Mapping[str, np.ndarray], num_classes: int | None
) -> tuple[Mapping[str, np.ndarray], frozenset[str]]:
    """Initializes the layers of the classifiers that a state dict lacks or has in other shapes.

    Args:
      name: of the architecture.
      arrays: by current key in torch, of which only classifiers do not fit; not changed.
      num_classes: of a classifier whose last layer is missing; `None` for 1000.

    Returns:
      The arrays, and the keys that are new.
    """
    model = _model_to_complete(name, arrays, num_classes)
    entries = entries_of(name, model)
    # A layer's bias belongs to its kernel: both are replaced together.
    unfit = {_module(key) for key, entry in entries.items() if _shape(arrays, key) != entry.shape}
    fresh = sorted(key for key in entries if _module(key) in unfit)
    if not fresh:
        return arrays, frozenset()
    known = entries.keys() | FAMILIES[name].buffers(name).keys()
    dropped = sorted(key for key in arrays if key in fresh or key not in known)
    kept = {key: array for key, array in arrays.items() if key not in dropped}
    leaves = initialize(model, [entries[key].leaf for key in fresh])
    made = {key: entries[key].layout.to_torch(leaves[entries[key].leaf]) for key in fresh}
    warnings.warn(
        f"These weights of {name!r} have no classifier that fits: {shortened(fresh)} are "
        "re-initialized and need training."
        + (f" Left out: {shortened(dropped)}." if dropped else ""),
        FreshHeadWarning,
        stacklevel=3,
    )
    return kept | made, frozenset(fresh)


def _model_to_complete(
    name: str, arrays: Mapping[str, np.ndarray], num_classes: int | None
) -> nn.Module:
    """The network of a state dict, with the classes asked for if its last layer does not fit."""
    model, head = model_of(name, arrays), FAMILIES[name].head
    if num_classes is None or _shape(arrays, head) == entries_of(name, model)[head].shape:
        return model
    return model.clone(num_classes=num_classes)


def _shape(arrays: Mapping[str, np.ndarray], key: str) -> tuple[int, ...] | None:
    return arrays[key].shape if key in arrays else None


def adapt(
    name: str,
    model: nn.Module,
    params: dict[str, Any],
    *,
    num_classes: int | None,
    in_channels: int | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and its parameters with the numbers of classes and channels asked for.

    Args:
      name: of the architecture.
      model: the checkpoint's network.
      params: the checkpoint's parameters; not changed.
      num_classes: see `importers.load`; `None` keeps the checkpoint's.
      in_channels: see `importers.load`; `None` keeps the checkpoint's.
    """
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
        leaves |= initialize(wanted, fresh)
        warnings.warn(
            f"The checkpoint of {name!r} has {model.num_classes} classes, not {num_classes}: "  # type: ignore[attr-defined]
            f"{', '.join(fresh)} are re-initialized and need training.",
            FreshHeadWarning,
            stacklevel=3,
        )
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    return wanted, tree["params"]


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The first kernel for another number of image channels. `[H, W, I, O] -> [H, W, C, O]`.

    One channel gets the sum over channels, so a grey image gives what its three equal channels
    gave. Otherwise channels repeat in their order and are scaled by `I / C`, which keeps the size
    of the activations. This is what `timm.models.adapt_input_conv` does.
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


def initialize(model: nn.Module, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Initializes some leaves of a network; the compiler drops all others.

    Args:
      model: the network.
      wanted: paths such as `params/fc/kernel`.
    """
    side = getattr(model, "image_size", 224)
    images = jnp.zeros((1, side, side, model.in_channels))  # type: ignore[attr-defined]

    @jax.jit
    def run(key: jax.Array) -> dict[str, jax.Array]:
        leaves = _flat(model.init(key, images))
        return {leaf: leaves[leaf] for leaf in wanted}

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")
