"""Get the state dict out of a file, a torch module, a training checkpoint, or wrapped names."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Source", "innermost", "prefix_before", "state_dict_of", "unwrap"]

NESTS = ("state_dict", "model_state_dict", "model")
"""The keys under which training checkpoints keep the state dict."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that `DistributedDataParallel` and `torch.compile` give to every name."""

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
        f"The weights are of type {type(source).__name__}, expected the path of a checkpoint, a "
        "state dict, or a torch.nn.Module."
    )


def unwrap(state_dict: Mapping[str, Any], stem: str = "") -> Mapping[str, Any]:
    """Removes what training loops wrap around a state dict.

    That is a checkpoint around it, see `innermost`, the prefixes `WRAPPERS`, and any other prefix
    if all names have it.

    Args:
      state_dict: the weights by name.
      stem: name of the first kernel, by which other prefixes are found.
    """
    state_dict = innermost(state_dict)
    for prefix in (*WRAPPERS, prefix_before(stem, state_dict)):
        if prefix and state_dict and all(str(key).startswith(prefix) for key in state_dict):
            return unwrap({key.removeprefix(prefix): state_dict[key] for key in state_dict}, stem)
    return state_dict


def prefix_before(stem: str, names: Iterable[str]) -> str:
    """What stands before the name of the first kernel, such as `backbone.`; often nothing."""
    # ResNet's `conv1.weight` also ends the names of its blocks, which are longer.
    first = min((str(n) for n in names if f".{n}".endswith(f".{stem}")), key=len, default=stem)
    return first.removesuffix(stem) if stem else ""


def innermost(checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict of a training checkpoint, which has counters and settings beside it."""
    for _ in NESTS:  # a limit, because a hostile file may nest a dict in itself
        inner = (checkpoint.get(name) for name in NESTS)
        checkpoint = next((x for x in inner if isinstance(x, Mapping) and x), checkpoint)
    return checkpoint
