"""What Python's own names in a pickle stand for, of those that tensors and arrays need."""

import types
from collections.abc import Mapping
from typing import Any

from importers.placeholders import Foreign, set_items

__all__ = ["PYTHON"]


def _ordered_dict(pairs: Any = None) -> dict[Any, Any]:
    """Items follow one by one, except from Python 2, which wrote a list of pairs."""
    items: dict[Any, Any] = {}
    if pairs is not None:
        if type(pairs) is not list:
            raise ValueError("a dict of something other than pairs")
        for key, value in pairs:
            set_items(items, [key, value])
        pairs.clear()  # or a hostile file could have it read again and again
    return items


def _reconstructor(kind: Any, base: Any, state: Any) -> Foreign:
    """An instance as protocols 0 and 1 make them."""
    if not isinstance(kind, Foreign):
        raise ValueError("an instance of no class")
    return kind


def _no_bytes() -> bytes:
    return b""


PYTHON: Mapping[tuple[str, str], Any] = types.MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        # Protocols 0 to 2 use Python 2's names of modules.
        ("copy_reg", "_reconstructor"): _reconstructor,
        ("__builtin__", "bytes"): _no_bytes,
    }
)
"""What each of Python's names stands for."""
