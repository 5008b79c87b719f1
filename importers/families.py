"""What is particular to the checkpoints of each family; all else follows from the names."""

from collections.abc import Mapping
from types import MappingProxyType

from importers.rules import Family
from tlv_jax.models import efficientnet_lite, resnet, vgg

__all__ = ["FAMILIES"]

_VGG = Family(
    stem="features.0.weight",
    head="classifier.6.weight",
    flattened={"classifier.0.weight": 512},
)
_RESNET = Family(stem="conv1.weight", head="fc.weight")
_EFFICIENTNET_LITE = Family(stem="_conv_stem.weight", head="_fc.weight")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(vgg.VARIANTS, _VGG),
        **dict.fromkeys(resnet.VARIANTS, _RESNET),
        **dict.fromkeys(efficientnet_lite.VARIANTS, _EFFICIENTNET_LITE),
    }
)
"""The family of every architecture."""
