"""What is particular to the checkpoints of each family; all else follows from the names."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from importers.rules import Family
from tlv_jax.models import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    efficientnet_lite,
    mnasnet,
    mobilenet_v2,
    mobilenet_v3,
    regnet,
    resnet,
    shufflenet_v2,
    squeezenet,
    vgg,
    vit,
)

__all__ = ["FAMILIES"]


def _image_size(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pixels a side that a position embedding `[1, 1 + tokens, D]` was made for."""
    positions, kernel = (
        getattr(state_dict.get(key), "shape", ())
        for key in ("encoder.pos_embedding", "conv_proj.weight")
    )
    if len(positions) != 3 or len(kernel) != 4 or positions[1] < 2:
        return {}
    return {"image_size": math.isqrt(positions[1] - 1) * kernel[-1]}


_CONVNEXT = Family(stem="features.0.0.weight", head="classifier.2.weight")
_VIT = Family(
    stem="conv_proj.weight",
    head="heads.head.weight",
    renamed=((r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),),
    options=_image_size,
)
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
_EFFICIENTNET = Family(stem="features.0.0.weight", head="classifier.1.weight")
_MOBILENET_V3 = Family(stem="features.0.0.weight", head="classifier.3.weight")
_REGNET = Family(stem="stem.0.weight", head="fc.weight")
_SHUFFLENET_V2 = Family(stem="conv1.0.weight", head="fc.weight")
_DENSENET = Family(
    stem="features.conv0.weight",
    head="classifier.weight",
    # The published files are from before the two layers lost their dots.
    older=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
)
_EFFICIENTNET_LITE = Family(stem="_conv_stem.weight", head="_fc.weight")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(alexnet.VARIANTS, _ALEXNET),
        **dict.fromkeys(squeezenet.VARIANTS, _SQUEEZENET),
        **dict.fromkeys(mobilenet_v2.VARIANTS, _MOBILENET_V2),
        **dict.fromkeys(mnasnet.VARIANTS, _MNASNET),
        **dict.fromkeys(densenet.VARIANTS, _DENSENET),
        **dict.fromkeys(efficientnet.VARIANTS, _EFFICIENTNET),
        **dict.fromkeys(mobilenet_v3.VARIANTS, _MOBILENET_V3),
        **dict.fromkeys(regnet.VARIANTS, _REGNET),
        **dict.fromkeys(shufflenet_v2.VARIANTS, _SHUFFLENET_V2),
        **dict.fromkeys(convnext.VARIANTS, _CONVNEXT),
        **dict.fromkeys(vit.VARIANTS, _VIT),
        **dict.fromkeys(vgg.VARIANTS, _VGG),
        **dict.fromkeys(resnet.VARIANTS, _RESNET),
        **dict.fromkeys(efficientnet_lite.VARIANTS, _EFFICIENTNET_LITE),
    }
)
"""The family of every architecture."""
