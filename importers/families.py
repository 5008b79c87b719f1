"""The exceptions of each family's checkpoints; everything else follows from the names."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from importers import foreign_names
from importers.rules import Family
from tlv_jax.models import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    efficientnet_lite,
    googlenet,
    inception_v3,
    maxvit,
    mnasnet,
    mobilenet_v2,
    mobilenet_v3,
    regnet,
    resnet,
    shufflenet_v2,
    squeezenet,
    swin,
    vgg,
    vit,
)
from tlv_jax.models.windows import relative_position_index

__all__ = ["FAMILIES"]


def _image_size(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Pixels a side of the images that a position embedding `[1, 1 + tokens, D]` is made for."""
    positions, kernel = (
        getattr(state_dict.get(key), "shape", ())
        for key in ("encoder.pos_embedding", "conv_proj.weight")
    )
    if len(positions) != 3 or len(kernel) != 4 or positions[1] < 2:
        return {}
    return {"image_size": math.isqrt(positions[1] - 1) * kernel[-1]}


_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def _auxiliary_heads(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whether there are any: torchvision can load the network without."""
    return {"aux_logits": any(key.startswith(_AUXILIARY) for key in state_dict)}


def _swin_buffers(name: str) -> Mapping[str, np.ndarray]:
    config = swin.VARIANTS[name]
    constants = {"relative_position_index": relative_position_index(config.window).reshape(-1)}
    if config.second:
        constants["relative_coords_table"] = swin.relative_coordinates(config.window)
    return {
        f"{block}.attn.{constant}": array
        for block, _, _ in config.blocks()
        for constant, array in constants.items()
    }


def _maxvit_buffers(name: str) -> Mapping[str, np.ndarray]:
    config = maxvit.VARIANTS[name]
    index = relative_position_index(config.partition)
    return {
        f"{layer}.layers.{kind}.attn_layer.1.relative_position_index": index
        for layer, _, _ in config.layers()
        for kind in ("window_attention", "grid_attention")
    }


_CONVNEXT = Family(
    stem="features.0.0.weight", head="classifier.2.weight", foreign=foreign_names.CONVNEXT
)
_VIT = Family(
    stem="conv_proj.weight",
    head="heads.head.weight",
    renamed=((r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),),
    # Published files have older names of the dense layers.
    older=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    options=_image_size,
    foreign=foreign_names.VIT,
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
    foreign=foreign_names.VGG,
)
_GOOGLENET = Family(
    stem="conv1.conv.weight",
    head="fc.weight",
    flattened={"aux1.fc1.weight": 128, "aux2.fc1.weight": 128},
    options=_auxiliary_heads,
    auxiliary=_AUXILIARY,
)
_INCEPTION_V3 = Family(
    stem="Conv2d_1a_3x3.conv.weight",
    head="fc.weight",
    options=_auxiliary_heads,
    auxiliary=_AUXILIARY,
)
_SWIN = Family(
    stem="features.0.0.weight",
    head="head.weight",
    buffers=_swin_buffers,
    foreign=foreign_names.SWIN,
)
_MAXVIT = Family(stem="stem.0.0.weight", head="classifier.5.weight", buffers=_maxvit_buffers)
_RESNET = Family(stem="conv1.weight", head="fc.weight", foreign=foreign_names.RESNET)
_SQUEEZENET = Family(stem="features.0.weight", head="classifier.1.weight")
_MOBILENET_V2 = Family(
    stem="features.0.0.weight", head="classifier.1.weight", foreign=foreign_names.MOBILENET_V2
)
_MNASNET = Family(stem="layers.0.weight", head="classifier.1.weight", version=2)
_EFFICIENTNET = Family(stem="features.0.0.weight", head="classifier.1.weight")
_MOBILENET_V3 = Family(stem="features.0.0.weight", head="classifier.3.weight")
_REGNET = Family(stem="stem.0.weight", head="fc.weight", foreign=foreign_names.REGNET)
_SHUFFLENET_V2 = Family(stem="conv1.0.weight", head="fc.weight")
_DENSENET = Family(
    stem="features.conv0.weight",
    head="classifier.weight",
    # Published files have older names of these layers, with a dot more.
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
        **dict.fromkeys(swin.VARIANTS, _SWIN),
        **dict.fromkeys(maxvit.VARIANTS, _MAXVIT),
        **dict.fromkeys(googlenet.VARIANTS, _GOOGLENET),
        **dict.fromkeys(inception_v3.VARIANTS, _INCEPTION_V3),
        **dict.fromkeys(vgg.VARIANTS, _VGG),
        **dict.fromkeys(resnet.VARIANTS, _RESNET),
        **dict.fromkeys(efficientnet_lite.VARIANTS, _EFFICIENTNET_LITE),
    }
)
"""The family of every architecture."""
