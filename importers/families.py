"""What is particular to the checkpoints of each family; all else follows from the names."""

from collections.abc import Mapping
from types import MappingProxyType

from importers.rules import Family
from tlv_jax.models import (
    alexnet,
    efficientnet_lite,
    mnasnet,
    mobilenet_v2,
    resnet,
    squeezenet,
    vgg,
)

__all__ = ["FAMILIES"]

_ALEXNET = Family(
    stem="features.0.weight",
    head="classifier.6.weight",
    flattened={"classifier.1.weight": 256},
)
_VGG = Family(
    stem="features.0.weight",
    head="classifier.6.weight",
    flattened={"classifier.0.weight": 512},
)
_RESNET = Family(stem="conv1.weight", head="fc.weight")
_SQUEEZENET = Family(stem="features.0.weight", head="classifier.1.weight")
_MOBILENET_V2 = Family(stem="features.0.0.weight", head="classifier.1.weight")
_MNASNET = Family(stem="layers.0.weight", head="classifier.1.weight")
_EFFICIENTNET_LITE = Family(stem="_conv_stem.weight", head="_fc.weight")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(alexnet.VARIANTS, _ALEXNET),
        **dict.fromkeys(squeezenet.VARIANTS, _SQUEEZENET),
        **dict.fromkeys(mobilenet_v2.VARIANTS, _MOBILENET_V2),
        **dict.fromkeys(mnasnet.VARIANTS, _MNASNET),
        **dict.fromkeys(vgg.VARIANTS, _VGG),
        **dict.fromkeys(resnet.VARIANTS, _RESNET),
        **dict.fromkeys(efficientnet_lite.VARIANTS, _EFFICIENTNET_LITE),
    }
)
"""The family of every architecture."""
