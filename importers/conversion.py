"""Strict conversion of a state dict: every key is used once, every leaf is filled once.

Paths of leaves are written `params/layer1.0/conv1/kernel`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from importers.efficientnet_lite import EFFICIENTNET_LITE
from importers.errors import CheckpointError
from importers.layouts import Layout
from importers.resnet import RESNET
from importers.rules import IGNORED, Family
from importers.vgg import VGG
from tlv_jax import models
from tlv_jax.models import efficientnet_lite, resnet, vgg

__all__ = ["KeyMatch", "StateDictError", "convert", "match_keys", "sizes_of"]

_FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(vgg.VARIANTS, VGG),
    **dict.fromkeys(resnet.VARIANTS, RESNET),
    **dict.fromkeys(efficientnet_lite.VARIANTS, EFFICIENTNET_LITE),
}
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

Shape = tuple[int, ...]


class StateDictError(CheckpointError):
    """A state dict does not fit the architecture that it is converted to."""


def convert(
    name: str, state_dict: Mapping[str, Any], *, param_dtype: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns a torch state dict into the parameters of the model of that name.

    The number of classes and of image channels are taken from the state dict: a ResNet18 that was
    trained on ten classes fits `models.create("resnet18", num_classes=10)`. Nothing else may
    differ. The counters `num_batches_tracked` are left out, present or not.

    Args:
      name: one of `models.names()`.
      state_dict: from torch's module names to arrays, or to torch tensors, which are read without
        importing torch.
      param_dtype: of the parameters; by default each keeps its own. Batch statistics become
        float32 in any case, as the models keep them.

    Returns:
      `(params, batch_stats)`: nested dicts of NumPy arrays that share no memory with the state
      dict, to be used as `model.apply({"params": params, "batch_stats": batch_stats}, images)`.
      A model without batch norm has empty `batch_stats`.

    Raises:
      OptionError: for a name that is not known.
      StateDictError: with everything that does not fit at once.
    """
    if name not in _FAMILIES:
        models.create(name)  # raises, and knows the close names
    arrays = {key: _as_array(key, value) for key, value in state_dict.items()}
    arrays = {key: array for key, array in arrays.items() if not IGNORED.fullmatch(key)}
    match = match_keys(name, arrays)
    if match.problems:
        raise StateDictError(_explain(name, arrays, match))
    leaves = {}
    for leaf, (key, layout) in match.places.items():
        dtype = jnp.float32 if leaf.startswith("batch_stats/") else param_dtype
        array = layout.to_flax(arrays[key])
        shared = np.may_share_memory(array, arrays[key])
        leaves[leaf] = np.array(array, dtype=dtype, order="C", copy=shared or None)
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    return tree["params"], tree.get("batch_stats", {})


def sizes_of(name: str, state_dict: Mapping[str, Any]) -> tuple[int, int]:
    """The `(num_classes, in_channels)` of a state dict; 1000 and 3 where it does not tell.

    Args:
      name: one of `models.names()`.
      state_dict: as for `convert`.
    """
    family = _FAMILIES[name]
    head, stem = state_dict.get(family.head), state_dict.get(family.stem)
    return (
        head.shape[0] if head is not None and head.ndim == 2 else 1000,
        stem.shape[1] if stem is not None and stem.ndim == 4 else 3,
    )


@dataclasses.dataclass(frozen=True)
class KeyMatch:
    """How a state dict matches one architecture.

    Attributes:
      places: from each filled leaf to the key that fills it, and its layout.
      problems: a line for each key or leaf that does not fit.
      score: share of all keys and leaves that fit each other.
    """

    places: Mapping[str, tuple[str, Layout]]
    problems: tuple[str, ...]
    score: float


def match_keys(name: str, arrays: Mapping[str, np.ndarray]) -> KeyMatch:
    """Finds the leaf of every key, without looking at values.

    Args:
      name: one of `models.names()`.
      arrays: a state dict of arrays, less its counters.
    """
    rules = _FAMILIES[name].rules
    leaves = _leaf_shapes(name, *sizes_of(name, arrays))
    places: dict[str, tuple[str, Layout]] = {}
    problems = []
    for key, array in arrays.items():
        targets = {
            target: rule.layout
            for rule in rules
            if (target := rule.target_of(key)) in leaves and target is not None
        }
        assert len(targets) <= 1, f"the rules send {key!r} to {sorted(targets)}"
        if not targets:
            problems.append(f"{key}: found {_describe(array)}, expected no such key. Remove it.")
        for leaf, layout in targets.items():
            assert leaf not in places, f"the rules fill {leaf!r} twice"
            places[leaf] = (key, layout)
    expected = _torch_shapes({leaf: (leaves[leaf], layout) for leaf, (_, layout) in places.items()})
    for leaf, (key, _) in places.items():
        problems += _check_array(key, arrays[key], expected[leaf])
    unfit = len(problems)
    for leaf in leaves.keys() - places.keys():
        problems.append(
            f"{_torch_key(leaf)}: found nothing, expected it to fill {leaf} of shape "
            f"{leaves[leaf]}. Add it."
        )
    score = (len(arrays) - unfit) / max(len(arrays), len(leaves))
    return KeyMatch(places, tuple(sorted(problems)), score)


@functools.cache
def _leaf_shapes(name: str, num_classes: int, in_channels: int) -> Mapping[str, Shape]:
    model = models.create(name, num_classes=num_classes, in_channels=in_channels)
    images = jax.ShapeDtypeStruct((1, 32, 32, in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _torch_shapes(leaves: Mapping[str, tuple[Shape, Layout]]) -> Mapping[str, Shape]:
    """The shape that each leaf has in torch, found without allocating one."""

    def all_to_torch(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {leaf: leaves[leaf][1].to_torch(array) for leaf, array in arrays.items()}

    structs = {
        leaf: jax.ShapeDtypeStruct(shape, jnp.float32) for leaf, (shape, _) in leaves.items()
    }
    return {leaf: out.shape for leaf, out in jax.eval_shape(all_to_torch, structs).items()}


def _check_array(key: str, array: np.ndarray, shape: Shape) -> list[str]:
    if array.shape != shape:
        return [
            f"{key}: found {_describe(array)}, expected shape {shape}. "
            "Take the checkpoint of this architecture."
        ]
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return [
            f"{key}: found {_describe(array)}, expected floating point. "
            "Convert quantized or integer weights first."
        ]
    return []


def _explain(name: str, arrays: Mapping[str, np.ndarray], match: KeyMatch) -> str:
    count = len(match.problems)
    lines = [f"The state dict does not fit {name!r}: {count} problem{'s' if count > 1 else ''}."]
    lines += [f"  {problem}" for problem in match.problems]
    stem = _FAMILIES[name].stem
    prefixes = [key.removesuffix(stem) for key in arrays if key.endswith(f".{stem}")]
    if prefixes and stem not in arrays:
        lines.append(f"Its keys begin with {prefixes[0]!r}: remove that prefix from all of them.")
    best = max(_likely(arrays), key=lambda other: match_keys(other, arrays).score, default=name)
    if best != name and match_keys(best, arrays).score > match.score:
        share = match_keys(best, arrays).score
        lines.append(f"Its keys fit {best!r} best ({share:.0%} of them): load it under that name.")
    return "\n".join(lines)


def _likely(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Architectures whose first convolution the state dict has."""
    return [name for name, family in _FAMILIES.items() if family.stem in arrays]


def _as_array(key: str, value: Any) -> np.ndarray:
    """Reads an array or a torch tensor, which may sit on a device or require a gradient."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of its own that torch could export to; float32 holds it exactly.
        if str(value.dtype) == "torch.bfloat16":
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    if not hasattr(value, "shape"):
        raise StateDictError(
            f"The state dict has {type(value).__name__} at {key!r}, expected an array or a tensor. "
            "Where a checkpoint holds more than weights, pass the part that holds them, often "
            "checkpoint['state_dict'] or checkpoint['model']."
        )
    return np.asarray(value)


def _torch_key(leaf: str) -> str:
    """`params/layer1.0/conv1/kernel -> layer1.0.conv1.weight`."""
    _, *modules, name = leaf.split("/")
    return ".".join((*modules, _LEAF_NAMES.get(name, name)))


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
