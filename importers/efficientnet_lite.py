"""The state dicts of EfficientNet-Lite, named as in `efficientnet_pytorch`."""

from importers.rules import Family, conv, dense, norm

__all__ = ["EFFICIENTNET_LITE"]

EFFICIENTNET_LITE = Family(
    stem="_conv_stem.weight",
    head="_fc.weight",
    rules=(
        *conv("_conv_(stem|head)", r"_conv_\1"),
        *norm("_bn([01])", r"_bn\1"),
        *conv(r"_blocks\.(\d+)\._(expand|depthwise|project)_conv", r"_blocks.\1/_\2_conv"),
        *norm(r"_blocks\.(\d+)\._bn([012])", r"_blocks.\1/_bn\2"),
        *dense("_fc", "_fc"),
    ),
)
