"""Choose the part of a checkpoint that is the network, among prefixes and other networks."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from importers.entries import backbone_fits, entries_of, model_of
from importers.errors import StateDictError
from importers.families import FAMILIES
from importers.foreign_keys import naming_of
from importers.naming import Naming
from importers.rules import IGNORED
from importers.torch_tensors import kind_without_values
from importers.wrappers import flatten, names_by_prefix, unwrapped

__all__ = ["Part", "PrefixWarning", "select"]

STEMS = frozenset(names.stem for family in FAMILIES.values() for names in (family, *family.foreign))

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
      naming: of another project whose keys these are, not renamed yet.
      left_out: names of other weights, of those in the checkpoint that the caller did not exclude
        by choosing a prefix.
    """

    prefix: str
    values: Mapping[str, Any]
    naming: Naming | None
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
    family = FAMILIES[name]
    flat = {key: _described(value) for key, value in flatten(checkpoint).items()}
    search = _search(name, flat)
    found = _choose(name, flat, search, prefix)
    # timm's VGGs differ from torchvision's in the classifier only, which need not be complete.
    part = [n.removeprefix(found) for n in flat if n.startswith(found)]
    naming = search.naming or naming_of(family.foreign, part)
    current = naming.current_key if naming else family.current_key
    origins = _origins(current, flat, found, search.complete)
    values = {key: flat[origin] for key, origin in origins.items()}
    # Whoever chooses a prefix knows that there is more: only what is under it too may surprise.
    near = [n for n in flat if prefix is None or (prefix and _begins(n, prefix))]
    others = [n for n in near if _is_weight(flat[n])]
    used = set(origins.values())
    return Part(found, values, naming, tuple(n for n in others if n not in used))


class _Search(NamedTuple):
    """Where the keys of a network are: for each prefix, keys and their names in the checkpoint."""

    needed: int
    names: Mapping[str, Mapping[str, str]]
    complete: Sequence[str]
    naming: Naming | None


def _search(name: str, flat: Mapping[str, Any]) -> _Search:
    """Looks for torchvision's keys, or else for another project's."""
    family = FAMILIES[name]
    keys = entries_of(name, model_of(name, flat)).keys()
    needed = {key for key in keys if not family.is_head(key)}
    names = names_by_prefix(flat, needed, family.current_key)
    complete, naming = _complete(names, len(needed)), None
    if not complete and (naming := naming_of(family.foreign, flat)):
        names = names_by_prefix(flat, needed, naming.current_whole_key)
        complete = _complete(names, len(needed))
    return _Search(len(needed), names, complete, naming)


def _complete(names: Mapping[str, Mapping[str, str]], needed: int) -> list[str]:
    """The prefixes behind which all keys are; of those for the same names, the shortest."""
    complete = {}
    for prefix in sorted(names, key=len, reverse=True):
        if len(names[prefix]) == needed:
            complete[frozenset(names[prefix].values())] = prefix
    return sorted(complete.values())


def _choose(name: str, flat: Mapping[str, Any], search: _Search, prefix: str | None) -> str:
    """The prefix of the one network, or of what resembles it most."""
    chosen = _matching(search.complete, prefix)
    if prefix is not None and not chosen:
        _refuse_prefix(name, flat, search.complete, prefix)
    if search.naming is None and 1 < len(chosen) <= MOST_COMPARED:
        chosen = _fitting(name, flat, chosen, search.complete) or chosen[:1]
    if len(chosen) > 1:
        raise StateDictError(
            f"The checkpoint holds {name!r} {len(chosen)} times, under the prefixes "
            f"{_listed(chosen)}. Choose one of them by prefix={_shown(chosen[0])} (for python -m "
            "importers by --prefix, for python -m train by --source-prefix, for tlv-jax transfer "
            "by --src-prefix)."
        )
    return chosen[0] if chosen else _closest(flat, search, prefix)


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
    current: Callable[[str], str], names: Iterable[str], prefix: str, complete: Iterable[str]
) -> dict[str, str]:
    """From each current key of the part with that prefix to its name in the checkpoint.

    Other complete networks whose prefix is longer are not in the part.
    """
    within = tuple(other for other in complete if other != prefix and other.startswith(prefix))
    origins: dict[str, str] = {}
    for name in names:
        key = current(unwrapped(name.removeprefix(prefix)))
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
        origins = _origins(FAMILIES[name].current_key, flat, prefix, complete)
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


def _closest(flat: Mapping[str, Any], search: _Search, wanted: str | None) -> str:
    """The prefix of what resembles the network, or any other network, most."""
    likely = _matching(search.names, wanted)
    best = max(likely, key=lambda prefix: len(search.names[prefix]), default="")
    if 3 * len(search.names.get(best, ())) >= search.needed:
        return best
    names = [name for name, value in flat.items() if _is_weight(value)]
    stems = [n.removesuffix(s) for n in names for s in STEMS if f".{n}".endswith(f".{s}")]
    best = min(_matching(stems, wanted), key=len, default="")
    # The blocks of a network may have layers that are called as the first one of another network.
    if best and 3 * sum(name.startswith(best) for name in names) >= len(names):
        return best
    whole = _with_dot(wanted or "")
    return whole if any(name.startswith(whole) for name in flat) else ""


def _described(value: Any) -> Any:
    """The value, or what it is for a tensor of which not even the shape can be asked."""
    return (hasattr(value, "detach") and kind_without_values(value)) or value


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
