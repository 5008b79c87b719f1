"""The names of ImageNet's classes."""

import functools
from importlib import resources

__all__ = ["imagenet_categories"]


@functools.cache
def imagenet_categories() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the order of the networks' logits."""
    text = resources.files("importers").joinpath("imagenet_categories.txt").read_text("utf-8")
    return tuple(text.splitlines())
