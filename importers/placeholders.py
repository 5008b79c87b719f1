"""What an unpickler makes instead of objects: descriptions of tensors, and placeholders.

None of them does anything, whatever a pickle asks of it.
"""

import dataclasses
from typing import Any

import numpy as np

__all__ = [
    "Foreign",
    "OtherKey",
    "Storage",
    "Tensor",
    "Unreadable",
    "natural",
    "set_items",
    "shape_of",
]

MOST_AXES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements of one dtype, somewhere in the file."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, its offset and strides counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Compared and hashed by identity, which takes no time whatever a hostile file puts into them.
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """Stands for a name that is not allowed, and for all that would be made with it."""

    module: str
    name: str

    def __str__(self) -> str:
        # Quoted and cut: the name comes from the file and could fill or steer a terminal.
        return repr(f"{self.module[:100]}.{self.name[:100]}")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class OtherKey:
    """Stands for a key of a dict that is not text, and so never names a tensor."""

    key: Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Unreadable:
    """Stands for a tensor of a kind that NumPy does not have.

    Attributes:
      what: its kind, with an article.
      remedy: what to save instead, as a sentence.
    """

    what: str
    remedy: str


def natural(number: Any) -> int:
    """Checks a size, offset or stride."""
    if type(number) is not int or not 0 <= number < 1 << 62:
        # Not shown: the text of a hostile number may be longer than memory.
        raise ValueError("a size, offset or stride that is not a natural number")
    return number


def shape_of(axes: Any) -> tuple[int, ...]:
    """Checks a shape or strides."""
    if type(axes) not in (tuple, list) or len(axes) > MOST_AXES:
        raise ValueError("a shape that is not a tuple of at most 32 sizes")
    return tuple(map(natural, axes))


def set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Puts keys and values, by turns, into a dict.

    Only text is kept as a key. A hostile file can nest tuples so that hashing them takes forever,
    and choose numbers whose hashes all collide.
    """
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            target[OtherKey(key)] = value
        elif key in target:
            raise ValueError(f"the key {key[:100]!r} twice")
        else:
            target[key] = value
