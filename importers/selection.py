"""Choose the part of a checkpoint that is the network, among prefixes and other networks."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from importers.entries import backbone_fits, entries_of, model_of
from importers.errors import StateDictError
from importers.families import FAMILIES
from importers.rules import IGNORED
from importers.wrappers import flatten, prefix_counts, unwrapped

__all__ = ["Part", "PrefixWarning", "chosen_prefix", "select"]

STEMS = frozenset(family.stem for family in FAMILIES.values())

MOST_COMPARED = 8
"""Networks in a checkpoint that are told apart by their shapes: each is compared in full."""


class PrefixWarning(UserWarning):
    """Only the part of a checkpoint under one prefix is used, and other weights are left out."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a checkpoint that is one network.

    Attributes:
      prefix: that its names have in the checkpoint, for example `backbone.`; often empty.
      values: by current key in torch, without the counters.
      left_out: names of other weights, of those in the checkpoint that the caller did not exclude
        by choosing a prefix.
    """

    prefix: str
    values: Mapping[str, Any]
    left_out: tuple[str, ...]


def select(name: str, checkpoint: Mapping[str, Any], prefix: str | None = None) -> Part:
    """Finds the network of that name in a checkpoint.

    A prefix is right if all keys of the network are there behind it. Those of the classifier need
    not be, and the words of wrapper modules do not count.

    Args:
      name: of the architecture.
      checkpoint: from names to values, which may be nested.
      prefix: chooses where the network is there more than once: the whole prefix or its beginning.

    Returns:
      The part. If the network is nowhere, that is the part which resembles it most.

    Raises:
      StateDictError: if the network is there more than once, if nothing has that prefix, or if a
        key is there twice.
    """
    flat = flatten(checkpoint)
    keys = entries_of(name, model_of(name, flat)).keys()
    needed = {key for key in keys if not FAMILIES[name].is_head(key)}
    counts = prefix_counts(flat, needed, FAMILIES[name].current_key)
    complete = sorted(found for found in counts if counts[found] == len(needed))
    chosen = _matching(complete, prefix)
    if prefix is not None and not chosen:
        _refuse_prefix(name, flat, complete, prefix)
    if 1 < len(chosen) <= MOST_COMPARED:
        chosen = _fitting(name, flat, chosen, complete) or chosen[:1]
    _refuse_several(name, chosen)
    found = chosen[0] if chosen else _closest(flat, counts, len(needed), prefix)
    origins = _origins(name, flat, found, complete)
    values = {key: flat[origin] for key, origin in origins.items()}
    # Whoever chooses a prefix knows that there is more: only what is under it too may surprise.
    near = [n for n in flat if prefix is None or (prefix and _begins(n, prefix))]
    others = [n for n in near if _is_weight(flat[n])]
    used = set(origins.values())
    return Part(found, values, tuple(n for n in others if n not in used))


def chosen_prefix(name: str, complete: Sequence[str], prefix: str | None) -> str:
    """The one prefix behind which a network is; an empty one if it is nowhere.

    Args:
      name: of the architecture.
      complete: all prefixes behind which it is.
      prefix: as for `select`.

    Raises:
      StateDictError: as `select`.
    """
    chosen = _matching(complete, prefix)
    if prefix is not None and not chosen:
        _refuse_prefix(name, complete, complete, prefix)
    _refuse_several(name, chosen)
    return chosen[0] if chosen else ""


def _refuse_several(name: str, chosen: Sequence[str]) -> None:
    if len(chosen) > 1:
        raise StateDictError(
            f"The checkpoint holds {name!r} {len(chosen)} times, under the prefixes "
            f"{_listed(chosen)}. Choose one of them by prefix={_shown(chosen[0])} (for python -m "
            "importers by --prefix, for python -m train by --source-prefix)."
        )


def _refuse_prefix(name: str, names: Iterable[str], complete: Sequence[str], prefix: str) -> None:
    """Raises, unless the prefix is that of a network that does not fit and is explained."""
    if complete:
        raise StateDictError(
            f"No {name!r} in the checkpoint has the prefix {prefix!r}, but under "
            f"{_listed(complete)} there is one. Give whole words, with dots between them."
        )
    if not any(_begins(n, prefix) for n in names):
        raise StateDictError(
            f"No name in the checkpoint has the prefix {prefix!r}. Leave it out, or give whole "
            "words, with dots between them."
        )


def _origins(
    architecture: str, names: Iterable[str], prefix: str, complete: Iterable[str]
) -> dict[str, str]:
    """From each current key of the part with that prefix to its name in the checkpoint.

    Other complete networks whose prefix is longer are not in the part.
    """
    family = FAMILIES[architecture]
    within = tuple(other for other in complete if other != prefix and other.startswith(prefix))
    origins: dict[str, str] = {}
    for name in names:
        key = family.current_key(unwrapped(name.removeprefix(prefix)))
        if not name.startswith(prefix) or name.startswith(within) or IGNORED.fullmatch(key):
            continue
        if key in origins:
            raise StateDictError(
                f"The state dict has both {origins[key]!r} and {name!r}, two names of the same "
                "array. Remove one of them."
            )
        origins[key] = name
    return origins


def _fitting(
    name: str, flat: Mapping[str, Any], prefixes: Iterable[str], complete: Iterable[str]
) -> list[str]:
    """The prefixes behind which shapes fit too: ResNet50 has all keys of ResNet18, and more."""
    fitting = []
    for prefix in prefixes:
        origins = _origins(name, flat, prefix, complete)
        values = {key: flat[origin] for key, origin in origins.items()}
        if backbone_fits(name, model_of(name, values), values):
            fitting.append(prefix)
    return fitting


def _matching(prefixes: Iterable[str], wanted: str | None) -> list[str]:
    """The prefixes that are the wanted one, or else those that begin with it."""
    prefixes = list(prefixes)
    if wanted is None:
        return prefixes
    whole = _with_dot(wanted)
    same = [p for p in prefixes if p == whole]
    same = same or [p for p in prefixes if unwrapped(p) == unwrapped(whole)]
    return same or [p for p in prefixes if wanted and _begins(p, wanted)]


def _closest(flat: Mapping[str, Any], counts: Counter[str], needed: int, wanted: str | None) -> str:
    """The prefix of what resembles the network, or any other network, most."""
    best = max(_matching(counts, wanted), key=lambda prefix: counts[prefix], default="")
    if 3 * counts[best] >= needed:
        return best
    names = [name for name, value in flat.items() if _is_weight(value)]
    stems = [n.removesuffix(s) for n in names for s in STEMS if f".{n}".endswith(f".{s}")]
    best = min(_matching(stems, wanted), key=len, default="")
    # The blocks of a network may have layers that are called as the first one of another network.
    if best and 3 * sum(name.startswith(best) for name in names) >= len(names):
        return best
    whole = _with_dot(wanted or "")
    return whole if any(name.startswith(whole) for name in flat) else ""


def _is_weight(value: Any) -> bool:
    """Whether a value is more than a counter, a setting, or a generator's state."""
    return len(getattr(value, "shape", ())) > 0 and "float" in str(getattr(value, "dtype", ""))


def _begins(name: str, prefix: str) -> bool:
    """Whether a name, or the rest of it without wrappers, begins with the words of a prefix."""
    whole = _with_dot(prefix)
    return name.startswith(whole) or unwrapped(name).startswith(unwrapped(whole))


def _with_dot(prefix: str) -> str:
    return prefix and prefix.removesuffix(".") + "."


def _shown(prefix: str) -> str:
    return repr(prefix.removesuffix("."))


def _listed(prefixes: Iterable[str]) -> str:
    return ", ".join(_shown(prefix) if prefix else "'' (no prefix)" for prefix in prefixes)
