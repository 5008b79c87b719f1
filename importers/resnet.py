"""The state dicts of torchvision's ResNets, ResNeXts and Wide ResNets."""

from importers.rules import Family, conv, dense, norm

__all__ = ["RESNET"]

RESNET = Family(
    stem="conv1.weight",
    head="fc.weight",
    rules=(
        *conv("conv1", "conv1"),
        *norm("bn1", "bn1"),
        *conv(r"layer(\d)\.(\d+)\.conv(\d)", r"layer\1.\2/conv\3"),
        *norm(r"layer(\d)\.(\d+)\.bn(\d)", r"layer\1.\2/bn\3"),
        *conv(r"layer(\d)\.(\d+)\.downsample\.0", r"layer\1.\2/downsample.0"),
        *norm(r"layer(\d)\.(\d+)\.downsample\.1", r"layer\1.\2/downsample.1"),
        *dense("fc", "fc"),
    ),
)
