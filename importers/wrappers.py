"""Remove what training loops wrap around a state dict: checkpoints, prefixes."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["innermost", "prefix_before", "unwrap"]

NESTS = ("state_dict", "model_state_dict", "model")
"""The keys under which training checkpoints keep the state dict."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that `DistributedDataParallel` and `torch.compile` give to every name."""


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
