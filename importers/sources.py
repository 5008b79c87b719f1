"""Get the state dict out of a file, a torch module, or a mapping."""

import os
from collections.abc import Mapping
from typing import Any

from importers.state_dicts import read_state_dict
from importers.wrappers import unwrap

__all__ = ["Source", "state_dict_of"]

Source = str | os.PathLike[str] | Mapping[str, Any] | Any
"""A path, a state dict, or a `torch.nn.Module`."""


def state_dict_of(source: Source) -> Mapping[str, Any]:
    """The arrays or tensors of a source by name, without wrappers.

    Raises:
      FileFormatError: as `read_state_dict`.
      UnsafeFileError: as `read_state_dict`.
      TypeError: if the source is neither a path, a mapping nor a torch module.
    """
    if isinstance(source, str | os.PathLike):
        return unwrap(read_state_dict(source))
    if isinstance(source, Mapping):
        return unwrap(source)
    if hasattr(source, "state_dict"):
        return unwrap(source.state_dict())
    raise TypeError(
        f"The weights are of type {type(source).__name__}, expected the path of a checkpoint, a "
        "state dict, or a torch.nn.Module."
    )
