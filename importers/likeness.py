"""Finds the architectures that a state dict resembles, from a table and without any network.

Finding the keys of all architectures takes a minute, so `key_sketches.csv` holds a sketch of each:
the smallest hashes of its keys with their shapes. The share of these hashes that two sets have in
common estimates the share of all elements that they have in common (Broder, "On the resemblance
and containment of documents", 1997). `python tests/test_likeness.py` prints the table.
"""

import csv
import functools
import zlib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from importers.families import FAMILIES

__all__ = ["Likeness", "Sketch", "likeliest", "sketch_of"]

SIZE = 32  # hashes of a sketch
# Always in the sketch: vision transformers of different patch size differ in little else.
ALWAYS = frozenset(family.stem for family in FAMILIES.values())

Shape = tuple[int, ...]
Sketch = tuple[int, ...]
"""Ascending hashes."""


class Likeness(NamedTuple):
    """The architectures that a state dict resembles most.

    Attributes:
      names: usually one; several if their sketches are equally close; none if none is close.
      share: estimated share of the keys and shapes that both have in common.
    """

    names: tuple[str, ...]
    share: float


def sketch_of(shapes: Mapping[str, Shape]) -> Sketch:
    """The smallest hashes of keys with their shapes, including those of first kernels.

    Args:
      shapes: from keys to shapes, in torch.
    """
    hashes = {
        zlib.crc32(f"{key} {shape}".encode()) >> (16 if key in ALWAYS else 0)
        for key, shape in shapes.items()
    }
    return tuple(sorted(hashes)[:SIZE])


def likeliest(shapes: Mapping[str, Shape]) -> Likeness:
    """Compares a state dict with every architecture.

    Args:
      shapes: from keys to shapes, in torch; the keys may be those of older files.
    """
    renamed: dict[tuple[tuple[str, str], ...], Sketch] = {}
    shares = {}
    for name, sketch in _known_sketches().items():
        family = FAMILIES[name]
        if family.older not in renamed:
            current = {family.current_key(key): shape for key, shape in shapes.items()}
            renamed[family.older] = sketch_of(current)
        shares[name] = _resemblance(renamed[family.older], sketch)
    best = max(shares.values())
    return Likeness(tuple(name for name in shares if shares[name] == best > 0), best)


def _resemblance(one: Sketch, other: Sketch) -> float:
    smallest = sorted({*one, *other})[:SIZE]
    shared = set(one) & set(other)
    return sum(number in shared for number in smallest) / len(smallest)


@functools.cache
def _known_sketches() -> Mapping[str, Sketch]:
    text = resources.files("importers").joinpath("key_sketches.csv").read_text("utf-8")
    return MappingProxyType(
        {
            row["architecture"]: tuple(int(digits, 16) for digits in row["hashes"].split())
            for row in csv.DictReader(text.splitlines())
        }
    )
