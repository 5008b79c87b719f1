"""Get the state dict out of a file, a torch module, or a mapping."""

import os
from collections.abc import Mapping
from typing import Any

from importers.state_dicts import read_checkpoint, read_state_dict

__all__ = ["Source", "state_dict_of"]

Source = str | os.PathLike[str] | Mapping[str, Any] | Any
"""A path, a state dict, or a `torch.nn.Module`."""


def state_dict_of(source: Source) -> Mapping[str, Any]:
    """What a source holds, by name: more than the network's weights if it is a checkpoint.

    Raises:
      FileFormatError: as `read_state_dict`.
      UnsafeFileError: as `read_state_dict`.
      TypeError: if the source is neither a path, a mapping nor a torch module.
    """
    if isinstance(source, str | os.PathLike):
        return _read(source)
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "state_dict"):
        return source.state_dict()
    raise TypeError(
        f"The weights are of type {type(source).__name__}, expected the path of a checkpoint, a "
        "state dict, or a torch.nn.Module."
    )


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    checkpoint = read_checkpoint(path)
    tensors = any(hasattr(value, "shape") for value in checkpoint.values())
    # An optimizer's state is explained where the architecture is known.
    if tensors or "param_groups" in checkpoint:
        return checkpoint
    return read_state_dict(path)  # raises, and says what the file holds
