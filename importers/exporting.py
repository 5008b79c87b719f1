"""Export Flax parameters to torch, with torch's names, layouts and constants."""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from importers.conversion import match_keys
from importers.errors import StateDictError
from importers.explaining import indented
from importers.families import FAMILIES
from tlv_jax import models

if TYPE_CHECKING:
    import torch

__all__ = ["arrays_for_torch", "export", "write_arrays", "write_safetensors", "write_torch"]


def export(
    name: str, params: Mapping[str, Any], batch_stats: Mapping[str, Any] | None = None
) -> dict[str, "torch.Tensor"]:
    """Returns the state dict of torchvision's network of that name.

        >>> params, batch_stats = pretrained.params, pretrained.batch_stats
        >>> state_dict = importers.export("efficientnet_lite0", params, batch_stats)
        >>> state_dict["_fc.weight"].shape  # torch_model.load_state_dict(state_dict) takes it
        torch.Size([1000, 1280])

    Args:
      name: one of `models.names()`.
      params: parameters, with any numbers of classes and image channels.
      batch_stats: batch statistics; `None` if the network has no batch norm.

    Returns:
      Tensors on the CPU by torch's names, in their own dtypes. Batch counters (zero) and constant
      buffers are included, so torch loads it strictly. `convert` returns the same bits from it.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if the parameters are not those of this architecture, with ten problems at
        most.
      ImportError: if torch is not installed; `write_safetensors` does not need it.
    """
    import torch

    arrays = arrays_for_torch(name, params, batch_stats)
    tensors: Any = OrderedDict((key, _as_tensor(torch, array)) for key, array in arrays.items())
    if (version := FAMILIES[name].version) is not None:
        tensors._metadata = {"": {"version": version}}  # as torch's own state dicts carry it
    return tensors


def write_safetensors(
    path: str | os.PathLike[str],
    name: str,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any] | None = None,
) -> None:
    """Writes the same state dict as a `.safetensors` file, without torch.

    The file appears under its name only when it is complete.

    Args:
      path: of the file; an existing one is replaced.
      name: see `export`.
      params: see `export`.
      batch_stats: see `export`.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if the parameters are not those of this architecture, with ten problems at
        most.
      OSError: if the file cannot be written.
    """
    write_arrays(path, arrays_for_torch(name, params, batch_stats), {"format": "pt"})


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by their names as a `.safetensors` file, which appears when it is complete.

    Args:
      path: of the file; an existing one is replaced.
      arrays: of numbers.
      metadata: of the file.

    Raises:
      OSError: if the file cannot be written.
    """
    tensors = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    described = None if metadata is None else dict(metadata)
    _write(Path(path), lambda partial: save_file(tensors, partial, metadata=described))


def write_torch(
    path: str | os.PathLike[str],
    name: str,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any] | None = None,
) -> None:
    """Writes the same state dict as `torch.save` does; needs torch.

    Args:
      path: of the file; an existing one is replaced.
      name: see `export`.
      params: see `export`.
      batch_stats: see `export`.

    Raises:
      OptionError: if the name is unknown.
      StateDictError: if the parameters are not those of this architecture.
      ImportError: if torch is not installed.
      OSError: if the file cannot be written.
    """
    import torch

    state_dict = export(name, params, batch_stats)

    def save(partial: Path) -> None:
        with partial.open("wb") as file:  # of a path, torch would raise a RuntimeError
            torch.save(state_dict, file)

    _write(Path(path), save)


def _write(path: Path, save: Callable[[Path], None]) -> None:
    """Lets `save` write a file of another name first, which then gets its own in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        # safetensors reports a full disk as its own error, and either would name `partial`.
        reason = error.strerror if isinstance(error, OSError) else error
        raise OSError(errno.EIO, f"cannot be written ({reason})", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def arrays_for_torch(
    name: str, params: Mapping[str, Any], batch_stats: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """The state dict as NumPy arrays; see `export`."""
    if name not in FAMILIES:
        models.create(name)  # raises, and suggests close names
    family, trees = FAMILIES[name], {"params": params, "batch_stats": batch_stats or {}}
    leaves = traverse_util.flatten_dict(_plain(trees), sep="/")
    arrays, origins = {}, {}
    for leaf, value in leaves.items():
        array = np.asarray(value)
        key = family.key_of(leaf)
        arrays[key] = family.layout_of(leaf, array.ndim).to_torch(array)
        origins[key] = leaf
    match = match_keys(name, arrays)
    strays = [
        f"{origins[key]}: expected {entry.leaf} in its place."
        for key, entry in match.entries.items()
        if entry.leaf != origins[key]
    ]
    problems = [*match.problems, *strays]
    if problems:
        raise StateDictError(
            f"The parameters are not those of {name!r}, {len(problems)} problems. In torch's "
            f"names:\n{indented(problems)}"
        )
    counters = {
        key.removesuffix("running_var") + "num_batches_tracked": np.zeros((), np.int64)
        for key in arrays
        if key.endswith("running_var")
    }
    return {**arrays, **counters, **family.buffers(name)}


def _plain(tree: Any) -> Any:
    """Nested dicts from any nested mapping, such as Flax's `FrozenDict`."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return tree


def _as_tensor(torch: Any, array: np.ndarray) -> "torch.Tensor":
    # A copy: the array may be a view of a JAX array, which must never be written to.
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
