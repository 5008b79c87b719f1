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

from importers.entries import Entry, backbone_fits, entries_of, model_of
from importers.errors import StateDictError, UnsafeFileError
from importers.explaining import explain, indented, shortened
from importers.families import FAMILIES
from importers.foreign_keys import ForeignKeysWarning, describe_renaming, renamed
from importers.layouts import SAME, Layout
from importers.placeholders import Foreign, Unreadable
from importers.selection import Part, PrefixWarning, select
from importers.torch_tensors import array_of
from tlv_jax import models

__all__ = ["KeyMatch", "arrays_of", "convert", "match_keys"]

ROWS = 32  # of a kernel, transposed at a time

Shape = tuple[int, ...]


def convert(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    param_dtype: Any = None,
    prefix: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns a torch state dict into the parameters of the model of that name.

    The numbers of classes and image channels come from the state dict: a ResNet18 trained on ten
    classes fits `models.create("resnet18", num_classes=10)`. Nothing else may differ. The counters
    `num_batches_tracked` are optional and left out. What training loops wrap around a state dict
    is removed: a checkpoint around it, the prefix behind which all keys of the network are, and
    the words of wrapper modules, such as `module`. The keys of some other projects are renamed to
    torchvision's.

    Args:
      name: one of `models.names()`.
      state_dict: from torch's names to arrays or to torch tensors, which are read without importing
        torch. It may be nested in a checkpoint.
      param_dtype: dtype of the parameters. By default each keeps its own, be it float16, bfloat16
        or float64. Batch statistics always become float32, which the models keep them in.
      prefix: chooses where the network is there more than once: what the names of the wanted one
        begin with, for example "model_ema" or "encoder_q".

    Returns:
      `(params, batch_stats)`: nested dicts of NumPy arrays that share no memory with the state
      dict, for `model.apply({"params": params, "batch_stats": batch_stats}, images)`. A model
      without batch norm has empty `batch_stats`.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if the state dict does not fit, with the likely cause and the first ten
        problems; if the network is there more than once; or if values are not finite or too large
        for `param_dtype`, with the first ten keys that have some.

    Warns:
      ForeignKeysWarning: if the keys are another project's.
      PrefixWarning: if other weights of a checkpoint are left out.
    """
    arrays = arrays_of(name, state_dict, prefix)
    match = match_keys(name, arrays)
    if match.problems:
        raise StateDictError(explain(name, arrays, match.problems))
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


def arrays_of(
    name: str, state_dict: Mapping[str, Any], prefix: str | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a state dict by torchvision's current keys, without the counters.

    Args:
      name: one of `models.names()`.
      state_dict: as for `convert`, or what this function returns.
      prefix: as for `convert`.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if more than the classifier does not fit, or as `select`.
      UnsafeFileError: if an object stands where the network has an array.

    Warns:
      ForeignKeysWarning: if the keys are another project's.
      PrefixWarning: if other weights of a checkpoint are left out.
    """
    if name not in FAMILIES:
        models.create(name)  # raises, and suggests close names
    part = select(name, state_dict, prefix)
    expected = entries_of(name, model_of(name, part.values))
    # Counters and settings beside the arrays are left out, but nothing that stands for an array.
    arrays = {
        key: _as_array(key, value)
        for key, value in part.values.items()
        if hasattr(value, "shape") or key in expected
    }
    if part.naming is not None:
        arrays = renamed(part.naming, arrays)
    _refuse_misfits(name, arrays, part)
    if part.naming is not None:
        warnings.warn(describe_renaming(part.naming), ForeignKeysWarning, stacklevel=3)
    if part.left_out:
        place = f"is under {part.prefix.removesuffix('.')!r}" if part.prefix else "has no prefix"
        warnings.warn(
            f"Only what {place} in the checkpoint is used as {name!r}. Left out: "
            f"{shortened(part.left_out, most=3)}.",
            PrefixWarning,
            stacklevel=3,
        )
    return arrays


def _refuse_misfits(name: str, arrays: Mapping[str, np.ndarray], part: Part) -> None:
    """Refuses a state dict of which more than the classifier does not fit.

    Raises:
      StateDictError: with the likely cause and the first problems.
    """
    problems = match_keys(name, arrays).problems
    if part.naming is None:
        if not backbone_fits(name, model_of(name, arrays), arrays):
            values = {**part.values, **arrays}
            raise StateDictError(explain(name, values, problems, part.prefix))
    # Another project's network may compute something else wherever it has a key more.
    elif not all(FAMILIES[name].is_head(problem) for problem in problems):
        origin = (
            f"The keys look like {part.naming.project}, for another network: do not remove any. "
            "Renamed, the"
        )
        raise StateDictError(explain(name, arrays, problems, part.prefix, origin=origin))


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
        lines.append(f"{key}: {count} of {arrays[key].size} values{fits}")
    return (
        "The state dict has NaN or infinite values, expected finite ones. Use a checkpoint from "
        "before the training diverged, or a wider param_dtype.\n" + indented(lines)
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


def _as_array(key: str, value: Any) -> np.ndarray:
    """Reads an array or a torch tensor, which may be on a device or require a gradient."""
    found = array_of(value) if hasattr(value, "detach") else value
    if isinstance(found, Unreadable):
        raise StateDictError(
            f"The state dict has {found.what} at {key!r}, expected an array or a tensor that "
            f"NumPy can hold. {found.remedy}"
        )
    if isinstance(found, Foreign):
        raise UnsafeFileError(
            f"The file asks for {found} at {key!r}, which is not needed to read tensors, so it is "
            "refused and nothing of it was run. Save model.state_dict() instead of the model."
        )
    if not hasattr(found, "shape"):
        raise StateDictError(
            f"The state dict has {type(value).__name__} at {key!r}, expected an array or a tensor. "
            "Pass model.state_dict()."
        )
    return np.asarray(found)


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
