"""The state dicts of torchvision's VGGs."""

from importers.layouts import dense_after_flatten
from importers.rules import Family, conv, dense, norm

__all__ = ["VGG"]

VGG = Family(
    stem="features.0.weight",
    head="classifier.6.weight",
    rules=(
        # Convolutions and norms are numbered through one Sequential. What stands at a number the
        # architecture tells: only one of the two targets is a parameter of it.
        *conv(r"features\.(\d+)", r"features.\1"),
        *norm(r"features\.(\d+)", r"features.\1"),
        *dense(r"classifier\.0", "classifier.0", layout=dense_after_flatten(512)),
        *dense(r"classifier\.([36])", r"classifier.\1"),
    ),
)
