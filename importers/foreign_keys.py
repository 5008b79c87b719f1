"""Read state dicts that have another project's keys: recognize, rename, and explain."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from importers.entries import entries_of, model_of
from importers.families import FAMILIES
from importers.foreign_names import UNREAD
from importers.likeness import likeliest
from importers.naming import PART, Naming

__all__ = ["ForeignKeysWarning", "describe_renaming", "explain_foreign", "naming_of", "renamed"]

ENOUGH = 0.5  # of the keys, in common with an architecture that is worth naming


class ForeignKeysWarning(UserWarning):
    """A state dict has another project's keys, which are renamed to torchvision's."""


def naming_of(namings: Iterable[Naming], keys: Iterable[Any]) -> Naming | None:
    """The first naming that recognizes one of the keys.

    Args:
      namings: of a family.
      keys: of a state dict, which may have a prefix.
    """
    keys = list(keys)
    return next((n for n in namings if any(n.recognizes(key) for key in keys)), None)


def renamed(naming: Naming, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by torchvision's keys, in torchvision's shapes.

    Args:
      naming: of these arrays.
      arrays: by `naming.current_key` of their keys.
    """
    arrays = {key: array for key, array in arrays.items() if not re.search(naming.left_out, key)}
    whole: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        part = PART.fullmatch(key)
        if part is None:
            whole[key] = _with_tail(naming, key, array)
        elif part[1] not in whole:
            # torch keeps the three projections of an attention in one array, in this order.
            parts = [arrays[name] for letter in "qkv" if (name := f"{part[1]}.{letter}") in arrays]
            whole[part[1]] = np.concatenate(parts)  # of another shape if one is missing
    return whole


def describe_renaming(naming: Naming) -> str:
    """What to tell the user of a state dict that was renamed."""
    return " ".join(
        (
            f"The keys are {naming.project}: they are renamed to torchvision's.",
            *([naming.caution] if naming.caution else []),
            "importers.load prepares pictures as for torchvision's weights: compare the mean and "
            "the standard deviation with those of this checkpoint.",
        )
    )


def explain_foreign(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Whose keys these look like, and what to do; nothing if they look like nobody's.

    Args:
      name: of the architecture that they do not fit.
      arrays: by keys that no naming of this architecture's family recognizes.
    """
    for naming in dict.fromkeys(n for family in FAMILIES.values() for n in family.foreign):
        if naming_of([naming], arrays) is None:
            continue
        current = renamed(naming, {naming.current_key(key): a for key, a in arrays.items()})
        likely = likeliest({key: array.shape for key, array in current.items()})
        if likely.share > ENOUGH:
            return (
                f"its keys look like {naming.project}, and their shapes fit "
                f"{' or '.join(map(repr, likely.names))} best. Load it under that name."
            )
    for pattern, project in UNREAD:
        if any(re.search(pattern, key) for key in arrays):
            fit = "fit" if _shapes_fit(name, arrays) else "do not fit either"
            return (
                f"its keys look like {project}. These are not read; their shapes {fit}. Use a "
                "checkpoint with torchvision's keys."
            )
    return ""


def _with_tail(naming: Naming, key: str, array: np.ndarray) -> np.ndarray:
    tail = next((tail for pattern, tail in naming.tails if re.search(pattern, key)), None)
    return array if tail is None or array.ndim == 0 else array.reshape(len(array), *tail)


def _shapes_fit(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether there is an array of the right shape for each key but the classifier's."""
    classifier, entries = FAMILIES[name].classifier, entries_of(name, model_of(name, {}))
    wanted = Counter(e.shape for key, e in entries.items() if not key.startswith(classifier))
    return not wanted - Counter(array.shape for array in arrays.values())
