"""Strict conversion of a state dict: every key is used once, every leaf is filled once.

Paths of leaves are written `params/layer1.0/conv1/kernel`.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from importers.entries import Entry, entries_of, model_of
from importers.errors import CheckpointError
from importers.families import FAMILIES
from importers.foreign_keys import (
    ForeignKeysWarning,
    describe_renaming,
    explain_foreign,
    naming_of,
    renamed,
)
from importers.layouts import SAME, Layout
from importers.likeness import likeliest
from importers.naming import Naming
from importers.placeholders import Unreadable
from importers.rules import IGNORED
from importers.torch_tensors import array_of
from importers.wrappers import prefix_before, unwrap
from tlv_jax import models

__all__ = ["KeyMatch", "StateDictError", "arrays_of", "convert", "match_keys"]

ROWS = 32  # of a kernel, transposed at a time

Shape = tuple[int, ...]


class StateDictError(CheckpointError):
    """A state dict does not fit the architecture it is converted to."""


def convert(
    name: str, state_dict: Mapping[str, Any], *, param_dtype: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns a torch state dict into the parameters of the model of that name.

    The numbers of classes and image channels come from the state dict: a ResNet18 trained on ten
    classes fits `models.create("resnet18", num_classes=10)`. Nothing else may differ. The counters
    `num_batches_tracked` are optional and left out. What training loops wrap around a state dict
    is removed: a checkpoint around it, and a prefix that all names have in common. The keys of
    some other projects are renamed to torchvision's.

    Args:
      name: one of `models.names()`.
      state_dict: from torch's names to arrays or to torch tensors, which are read without importing
        torch.
      param_dtype: dtype of the parameters. By default each keeps its own, be it float16, bfloat16
        or float64. Batch statistics always become float32, which the models keep them in.

    Returns:
      `(params, batch_stats)`: nested dicts of NumPy arrays that share no memory with the state
      dict, for `model.apply({"params": params, "batch_stats": batch_stats}, images)`. A model
      without batch norm has empty `batch_stats`.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if the state dict does not fit, with every problem; or if values are not
        finite or too large for `param_dtype`, with every key that has some.

    Warns:
      ForeignKeysWarning: if the keys are another project's.
    """
    arrays = arrays_of(name, state_dict)
    match = match_keys(name, arrays)
    if match.problems:
        raise StateDictError(_explain(name, arrays, match))
    leaves, broken = {}, {}
    for key, entry in match.entries.items():
        dtype = jnp.float32 if entry.leaf.startswith("batch_stats/") else param_dtype
        leaf = leaves[entry.leaf] = _copy_to_flax(arrays[key], entry.layout, dtype)
        finite = np.isfinite(leaf)
        if not finite.all():
            broken[key] = leaf.size - int(finite.sum())
    if broken:
        raise StateDictError(_explain_broken(broken, arrays))
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    return tree["params"], tree.get("batch_stats", {})


@dataclasses.dataclass(frozen=True)
class KeyMatch:
    """How a state dict matches one architecture.

    Attributes:
      entries: from each key that fills a leaf to that leaf.
      problems: one line for each key or leaf that does not fit.
    """

    entries: Mapping[str, Entry]
    problems: tuple[str, ...]


def match_keys(name: str, arrays: Mapping[str, np.ndarray]) -> KeyMatch:
    """Finds the leaf of every key.

    Args:
      name: one of `models.names()`.
      arrays: as `arrays_of` returns them.
    """
    expected, buffers = entries_of(name, model_of(name, arrays)), FAMILIES[name].buffers(name)
    problems = []
    for key, array in arrays.items():
        if key in buffers:
            problems += _check_buffer(key, array, buffers[key])
        elif key in expected:
            problems += _check_array(key, array, expected[key].shape)
        else:
            problems.append(f"{key}: found {_describe(array)}, expected no such key. Remove it.")
    for key in expected.keys() - arrays.keys():
        problems.append(
            f"{key}: found nothing, expected shape {expected[key].shape}, to fill "
            f"{expected[key].leaf}. Add it."
        )
    entries = {key: expected[key] for key in arrays if key in expected}
    return KeyMatch(entries, tuple(sorted(problems)))


def arrays_of(name: str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a state dict by torchvision's current keys, without the counters.

    Args:
      name: one of `models.names()`.
      state_dict: as for `convert`, or what this function returns.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if a value is not an array, an array has two keys, or another project's state
        dict does not fit.

    Warns:
      ForeignKeysWarning: if the keys are another project's.
    """
    if name not in FAMILIES:
        models.create(name)  # raises, and suggests close names
    family, state_dict = FAMILIES[name], unwrap(state_dict)
    naming = naming_of(family.foreign, state_dict)
    names = naming or family
    arrays: dict[str, np.ndarray] = {}
    for key, value in unwrap(state_dict, names.stem).items():
        if IGNORED.fullmatch(key):
            continue
        current = names.current_key(key)
        if current in arrays:
            raise StateDictError(
                f"The state dict has both {key!r} and {current!r}, an older and the current name "
                "of the same array. Remove one of them."
            )
        arrays[current] = _as_array(key, value)
    if naming is None:
        return arrays
    arrays = renamed(naming, arrays)
    _refuse_misfits(name, naming, arrays)
    warnings.warn(describe_renaming(naming), ForeignKeysWarning, stacklevel=3)
    return arrays


def _refuse_misfits(name: str, naming: Naming, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses renamed arrays that do not fit, or of which others than the classifier's miss.

    Raises:
      StateDictError: with every problem.
    """
    # `importers.load` initializes a classifier that is missing.
    classifier = FAMILIES[name].classifier
    problems = match_keys(name, arrays).problems
    if all(problem.startswith(classifier) for problem in problems):
        return
    origin = (
        f"The keys look like {naming.project}, for another network: do not remove any. Renamed, the"
    )
    raise StateDictError(_explain(name, arrays, KeyMatch({}, problems), origin=origin))


def _copy_to_flax(array: np.ndarray, layout: Layout, dtype: Any) -> np.ndarray:
    """A contiguous copy in Flax's layout, in this dtype or, for `None`, in the array's own."""
    # Values beyond a narrower dtype become infinite, which `convert` reports.
    with np.errstate(over="ignore"):
        if layout is SAME:
            return np.array(array, dtype, order="C")
        shape = (*layout.to_flax(array[:1]).shape[:-1], len(array))
        copy = np.empty(shape, array.dtype if dtype is None else dtype)
        # A few rows stay in the processor's cache while they become columns: 3 to 6 times faster.
        for start in range(0, len(array), ROWS):
            rows = slice(start, start + ROWS)
            copy[..., rows] = layout.to_flax(array[rows])
    return copy


def _explain_broken(broken: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> str:
    lines = []
    for key, count in broken.items():
        fits = " are too large for the dtype asked" if np.isfinite(arrays[key]).all() else ""
        lines.append(f"  {key}: {count} of {arrays[key].size} values{fits}")
    return (
        "The state dict has NaN or infinite values, expected finite ones. Use a checkpoint from "
        "before the training diverged, or a wider param_dtype.\n" + "\n".join(lines)
    )


def _check_buffer(key: str, array: np.ndarray, expected: np.ndarray) -> list[str]:
    # Floating-point constants may come from another machine, or be rounded to half precision.
    tolerance = 0.0
    if jnp.issubdtype(array.dtype, jnp.floating):
        tolerance = 8 * float(jnp.finfo(array.dtype).eps)
    if array.shape == expected.shape and np.allclose(
        array.astype(np.float64), expected, rtol=tolerance, atol=0
    ):
        return []
    return [
        f"{key}: found {_describe(array)}, expected the constant {_describe(expected)} of this "
        "architecture. Use one of its checkpoints."
    ]


def _check_array(key: str, array: np.ndarray, shape: Shape) -> list[str]:
    if array.shape != shape:
        return [
            f"{key}: found {_describe(array)}, expected shape {shape}. "
            "Use a checkpoint of this architecture."
        ]
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return [
            f"{key}: found {_describe(array)}, expected floating point. "
            "Convert quantized or integer weights first."
        ]
    return []


def _explain(
    name: str, arrays: Mapping[str, np.ndarray], match: KeyMatch, *, origin: str = "The"
) -> str:
    count = len(match.problems)
    lines = [
        f"{origin} state dict does not fit {name!r}: {_likely_cause(name, arrays)}"
        f"{count} problem{'s' if count > 1 else ''}.",
        *(f"  {problem}" for problem in match.problems),
    ]
    return "\n".join(lines)


def _likely_cause(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """What most likely happened and what to do, or nothing if there is no telling."""
    family, expected = FAMILIES[name], entries_of(name, model_of(name, arrays)).keys()
    missing = expected - arrays.keys()
    if missing and all(key.startswith(family.classifier) for key in missing):
        return (
            "its classifier is missing or has other layers. Remove what is left of it, and "
            "importers.load initializes a new one. "
        )
    prefix = prefix_before(family.stem, arrays)
    if prefix and sum(prefix + key in arrays for key in expected) > len(expected) / 2:
        return (
            f"it seems to be that of a larger network. Pass only the keys that begin with "
            f"{prefix!r}, without this prefix. "
        )
    if foreign := explain_foreign(name, arrays):
        return foreign
    likely = likeliest(_shapes(arrays))
    if likely.names and name not in likely.names:
        return (
            f"its keys fit {' or '.join(map(repr, likely.names))} best (about {likely.share:.0%} "
            "of them). Load it under that name. "
        )
    return ""


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    return {key: array.shape for key, array in arrays.items()}


def _as_array(key: str, value: Any) -> np.ndarray:
    """Reads an array or a torch tensor, which may be on a device or require a gradient."""
    if hasattr(value, "detach"):
        found = array_of(value)
        if isinstance(found, Unreadable):
            raise StateDictError(
                f"The state dict has {found.what} at {key!r}, expected an array or a tensor that "
                f"NumPy can hold. {found.remedy}"
            )
        return found
    if not hasattr(value, "shape"):
        raise StateDictError(
            f"The state dict has {type(value).__name__} at {key!r}, expected an array or a tensor. "
            "If the checkpoint holds more than weights, pass the part that holds them, often "
            "checkpoint['state_dict'] or checkpoint['model']."
        )
    return np.asarray(value)


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
