"""Get the state dict out of a file, a torch module, a training checkpoint, or wrapped names."""

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["Source", "innermost", "state_dict_of", "unwrap"]

NESTS = ("state_dict", "model_state_dict", "model")
"""The keys under which training checkpoints keep the state dict."""

WRAPPERS = ("module.", "_orig_mod.")
"""What `DistributedDataParallel` and `torch.compile` put before every name."""

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

    That is a checkpoint around it, see `innermost`, and the prefixes `module.` and `_orig_mod.` if
    every name has them.
    """
    state_dict = innermost(state_dict)
    for prefix in WRAPPERS:
        if state_dict and all(str(key).startswith(prefix) for key in state_dict):
            return unwrap({key.removeprefix(prefix): state_dict[key] for key in state_dict})
    return state_dict


def innermost(checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict of a training checkpoint, which has counters and settings beside it."""
    for _ in NESTS:  # not for as long as there is one: a hostile file may nest a dict in itself
        inner = (checkpoint.get(name) for name in NESTS)
        checkpoint = next((x for x in inner if isinstance(x, Mapping) and x), checkpoint)
    return checkpoint
