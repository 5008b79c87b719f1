"""What a state dict may come in: a file, a torch module, a training checkpoint, wrapped names."""

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["NESTS", "Source", "state_dict_of", "unwrap"]

NESTS = ("state_dict", "model_state_dict", "model")
"""Where training checkpoints keep the state dict."""

WRAPPERS = ("module.", "_orig_mod.")
"""What `DistributedDataParallel` and `torch.compile` put before every name."""

Source = str | os.PathLike[str] | Mapping[str, Any] | Any
"""A path, a state dict, or a `torch.nn.Module`."""


def state_dict_of(source: Source) -> Mapping[str, Any]:
    """The arrays or tensors of a source by name, wrappers taken off.

    Raises:
      FileFormatError, UnsafeFileError: as `read_state_dict`, for a path.
      TypeError: for anything else that is neither a mapping nor a torch module.
    """
    if isinstance(source, str | os.PathLike):
        from importers.state_dicts import read_state_dict

        return unwrap(read_state_dict(source))
    if isinstance(source, Mapping):
        return unwrap(source)
    if hasattr(source, "state_dict"):
        return unwrap(source.state_dict())
    raise TypeError(
        f"The weights come as {type(source).__name__}, expected the path of a checkpoint, a state "
        "dict, or a torch.nn.Module."
    )


def unwrap(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Takes off what training loops wrap around a state dict.

    That is a checkpoint with the state dict under one of `NESTS`, and the prefixes `module.` and
    `_orig_mod.` where every name has them.
    """
    for name in NESTS:
        inner = state_dict.get(name)
        if isinstance(inner, Mapping) and inner:
            return unwrap(inner)
    for prefix in WRAPPERS:
        if state_dict and all(str(key).startswith(prefix) for key in state_dict):
            return unwrap({key.removeprefix(prefix): state_dict[key] for key in state_dict})
    return state_dict
