"""Say why a state dict does not fit an architecture, and what to do about it."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from importers.entries import Entry, backbone_fits, entries_of, model_of
from importers.families import FAMILIES
from importers.foreign_keys import explain_foreign
from importers.likeness import likeliest

__all__ = ["explain", "indented", "shortened"]

MOST = 10
"""Problems that a message lists; it counts the others."""

LIKELY = 0.5
"""Share of keys and shapes from which on a state dict is said to be of another architecture."""


class Sign(NamedTuple):
    """What a state dict is that has such keys.

    Attributes:
      keys: a regular expression for them.
      cause: what it is, and what to do.
    """

    keys: str
    cause: str


SIGNS = (
    Sign(
        r"(.+\.)?\w+_mask",
        "it is pruned, with a mask beside each kernel. Before saving, make this permanent: "
        "torch.nn.utils.prune.remove(module, 'weight').",
    ),
    Sign(
        r"(.+\.)?(weight_[guv]|parametrizations\..+)",
        "its kernels are stored in parts, as weight norm and other parametrizations do. Before "
        "saving, join them: torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'), "
        "or torch.nn.utils.remove_weight_norm(module) for the older one.",
    ),
    Sign(
        r"(.+\.)?(lora_\w+|base_layer|adapters?|adapter_\w+)(\..+)?",
        "it has LoRA or adapter layers. Merge them into the kernels before saving, in peft by "
        "model.merge_and_unload().",
    ),
    Sign(
        r"(.+\.)?(_packed_params|zero_point|\w*fake_quant\w*|activation_post_process\w*|SCB)(\..+)?",
        "it is quantized. Use the checkpoint from before the quantization.",
    ),
)


def explain(
    name: str,
    values: Mapping[str, Any],
    problems: Sequence[str],
    prefix: str = "",
    *,
    origin: str = "The",
) -> str:
    """The message for a state dict that does not fit: what most likely happened, then details.

    Args:
      name: of the architecture.
      values: by current key in torch; whatever has their shapes.
      problems: one line for each key that does not fit.
      prefix: that was taken off the names of the checkpoint.
      origin: how the message begins, before "state dict".
    """
    place = f" under the prefix {prefix.removesuffix('.')!r}" if prefix else ""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    cause = _cause(name, values)
    return (
        f"{origin} state dict{place} does not fit {name!r}: {cause}{' ' if cause else ''}{count}.\n"
        f"{indented(problems)}"
    )


def indented(lines: Sequence[str]) -> str:
    """The first lines of a list, and how many there are besides."""
    others = [f"and {len(lines) - MOST} others"] if len(lines) > MOST else []
    return "\n".join(f"  {_printable(line)}" for line in (*lines[:MOST], *others))


def shortened(names: Sequence[str], most: int = MOST) -> str:
    """The first names of a list in one line, and how many there are besides."""
    others = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(map(_printable, names[:most])) + others


def _printable(text: str) -> str:
    """Text with names from a file, which could fill or steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:400])


class _Difference(NamedTuple):
    """How a state dict differs from a network, classifiers aside."""

    entries: Mapping[str, Entry]
    missing: Set[str]
    strays: Set[str]
    unfit: Set[str]


def _cause(name: str, values: Mapping[str, Any]) -> str:
    """What most likely happened and what to do, or nothing if there is no telling."""
    family, model = FAMILIES[name], model_of(name, values)
    entries = entries_of(name, model)
    shapes = {key: tuple(value.shape) for key, value in values.items() if hasattr(value, "shape")}
    strays = values.keys() - entries.keys() - family.buffers(name).keys()
    missing = entries.keys() - shapes.keys()
    unfit = {key for key in entries.keys() & shapes.keys() if shapes[key] != entries[key].shape}
    if backbone_fits(name, model, values):
        return _cause_beside(bool(missing or unfit), strays)
    for sign in SIGNS:
        if any(re.fullmatch(sign.keys, key) for key in strays):
            return sign.cause
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    if foreign := explain_foreign(name, arrays):
        return foreign
    likely = likeliest(shapes)
    if name not in likely.names and likely.share >= LIKELY:
        return (
            f"its keys fit {' or '.join(map(repr, likely.names))} best (about {likely.share:.0%} "
            "of them). Load it under that name."
        )
    body = {key: entry for key, entry in entries.items() if not family.is_head(key)}
    children = {key.partition(".")[0] for key in body}
    difference = _Difference(
        entries=body,
        missing=missing & body.keys(),
        strays={key for key in strays if key.partition(".")[0] in children},
        unfit=unfit & body.keys(),
    )
    return _cause_of_form(strays, shapes) or _cause_within(name, difference)


def _cause_beside(other_classifier: bool, strays: Set[str]) -> str:
    if other_classifier:
        return (
            "its classifier is missing or another one. importers.load replaces it with a new one; "
            "this strict conversion needs the whole network."
        )
    if strays:
        return "all of the network is there, and other keys beside it. Remove them."
    return ""


def _cause_of_form(strays: Set[str], shapes: Mapping[str, Any]) -> str:
    """For what is no state dict of a torch network."""
    last_words = {key.rpartition(".")[2] for key in strays}
    if "param_groups" in last_words:
        return "it is that of an optimizer. Pass the network's own, model.state_dict()."
    if not shapes:
        return "there are no tensors in it. Pass model.state_dict()."
    if "kernel" in last_words and "weight" not in last_words:
        return (
            "its names are those of a Flax or JAX network, which calls a weight 'kernel'. "
            "Parameters of tlv_jax.models need no conversion: pass them to model.apply."
        )
    if strays and all(key.partition(".")[0].isdigit() for key in strays):
        return (
            "its modules have numbers in place of names, as in torch.nn.Sequential("
            "*network.children()). Pass the state dict of the network itself."
        )
    if any(key.startswith(("rpn.", "roi_heads.", "backbone.")) for key in strays):
        return (
            "it is that of a larger network, such as a detector, and no part of it has these keys. "
            "Name the architecture of its backbone, or rename the backbone's keys."
        )
    return ""


def _cause_within(name: str, difference: _Difference) -> str:
    """For networks that are much like the architecture."""
    entries, missing, strays, unfit = difference
    norms = {_module(key) for key in entries if key.endswith(".running_mean")}
    biases = [k for k in strays if k.endswith(".bias") and f"{_module(k)}.weight" in entries]
    if biases and norms and norms <= {_module(key) for key in missing}:
        return (
            "its batch norms are folded into the convolutions, which have biases instead. Use the "
            "checkpoint from before this."
        )
    if not missing and not strays and 2 * len(unfit) > len(entries):
        return f"it has the layers of {name!r} in other widths. Use a checkpoint of this one."
    present = entries.keys() - missing
    if strays and not missing and _are_more_layers(strays, present):
        return f"it has more layers than {name!r}, such as {_module(min(strays))!r}."
    if missing and not strays and _are_more_layers(missing, present):
        return (
            f"it has fewer layers than {name!r}: it lacks {_module(min(missing))!r}, for example."
        )
    return ""


def _are_more_layers(keys: Set[str], others: Set[str]) -> bool:
    """Whether keys are those of whole layers that are called as the others, but for numbers."""
    modules, known = {_module(key) for key in keys}, {_unnumbered(key) for key in others}
    whole = len(modules) > 1 and modules.isdisjoint(_module(key) for key in others)
    return whole and all(_unnumbered(key) in known for key in keys)


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _unnumbered(key: str) -> str:
    return re.sub(r"\d+", "#", key)
