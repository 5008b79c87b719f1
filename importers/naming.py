"""How another project names the arrays of a network that torchvision has too.

The tables are in `foreign_names`. `foreign_keys` applies them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

__all__ = ["PART", "Naming", "Rule"]

Rule = tuple[str, str | Callable[["re.Match[str]"], str]]
"""A regular expression and what replaces it, as `re.sub` takes them."""

PART = re.compile(r"(.+\.in_proj_(?:weight|bias))\.[qkv]")
"""What rules make of the key of a part of an array."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names that one project gives to the arrays of one family.

    Attributes:
      project: whose names these are, as a genitive for messages: "timm's".
      stem: key of the first convolution's kernel.
      rules: applied one after the other, they turn a key into torchvision's.
      mark: regular expression for a key that tells these names from torchvision's, and from those
        of other projects; by default the stem.
      left_out: regular expression for torchvision's keys of what a classifier does not use.
      tails: pairs of a regular expression for torchvision's keys, and the shape that an array has
        there behind its first axis.
      caution: what the keys do not tell, for messages.
    """

    project: str
    stem: str
    rules: tuple[Rule, ...]
    mark: str = ""
    left_out: str = r"(?!)"  # nothing
    tails: tuple[tuple[str, tuple[int, ...]], ...] = ()
    caution: str = ""

    def recognizes(self, key: Any) -> bool:
        """Whether a key, with or without a prefix, is one that only this project has."""
        mark = self.mark or re.escape(self.stem)
        return re.search(rf"(?:^|\.)(?:{mark})$", str(key)) is not None

    def current_key(self, key: str) -> str:
        """Torchvision's key of an array, or of a part of one: `....in_proj_weight.q`."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key

    def current_whole_key(self, key: str) -> str:
        """Torchvision's key of an array, or of the one that a part is of."""
        current = self.current_key(key)
        part = PART.fullmatch(current)
        return part[1] if part else current
