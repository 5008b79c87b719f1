"""Take apart what training loops wrap around a state dict: checkpoints, prefixes, wrapper modules.

This file knows names only; `importers.selection` chooses among them.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from importers.errors import CheckpointError

__all__ = ["NESTS", "WRAPPERS", "flatten", "innermost", "names_by_prefix", "unwrapped"]

NESTS = ("state_dict", "model_state_dict", "model")
"""The keys under which training checkpoints keep the state dict."""

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning
    }
)
"""Words that torch's wrapper modules put into names, in front or in the middle."""

# A hostile file may nest without end, or multiply one long name.
DEEPEST = 8
LONGEST = 200


def innermost(checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict of a training checkpoint, which has counters and settings beside it."""
    for _ in NESTS:  # a limit, because a hostile file may nest a dict in itself
        inner = (checkpoint.get(name) for name in NESTS)
        checkpoint = next((x for x in inner if isinstance(x, Mapping) and x), checkpoint)
    return checkpoint


def flatten(checkpoint: Mapping[Any, Any]) -> dict[str, Any]:
    """Every entry of nested mappings by its keys, joined with dots: `model.conv1.weight`.

    Keys that are not text are left out: optimizers have them, networks do not. A mapping that is
    there twice, under two names, is there once in the result.

    Raises:
      CheckpointError: if two entries have the same name.
    """
    flat: dict[str, Any] = {}
    level, seen = [("", checkpoint)], {id(checkpoint)}
    for _ in range(DEEPEST):
        deeper = []
        for prefix, mapping in level:
            for key, value in mapping.items():
                if not isinstance(key, str):
                    continue
                name = prefix + key
                if not isinstance(value, Mapping):
                    if name in flat:
                        raise CheckpointError(
                            f"The checkpoint has {name!r} twice, once with a dot in its key and "
                            "once in a nested dict. Remove one of them."
                        )
                    flat[name] = value
                elif id(value) not in seen and len(key) <= LONGEST:
                    seen.add(id(value))
                    deeper.append((f"{name}.", value))
        level = deeper
    return flat


def unwrapped(name: str) -> str:
    """A name without the words of wrapper modules: `layer1.module.0.weight -> layer1.0.weight`."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def names_by_prefix(
    names: Iterable[str], keys: Collection[str], current: Callable[[str], str]
) -> dict[str, dict[str, str]]:
    """Finds, for each prefix, the keys of a network that are there behind it, and their names.

    A prefix such as `backbone.` ends with a dot, or is empty.

    Args:
      names: of a checkpoint's entries.
      keys: of the network.
      current: from a key of older files, or of another project, to the current one.
    """
    longest = max(key.count(".") for key in keys) + 8  # other projects' keys have more words
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        words = name.split(".")
        inner = [place for place, word in enumerate(words) if word not in WRAPPERS]
        for first in range(max(len(inner) - longest, 0), len(inner)):
            key = current(".".join(words[place] for place in inner[first:]))
            if key in keys:
                found["".join(f"{word}." for word in words[: inner[first]])][key] = name
    return found
