"""Pretrained weights for `tlv_jax.models`, read strictly and without torch.

    >>> import importers
    >>> import numpy as np
    >>> pretrained = importers.load("efficientnet_lite0")
    >>> len(pretrained.categories)
    1000

All examples of this package go on from here. `pretrained.network` gives weights to another one,
`pretrained.model` classifies pictures, and `export` goes back to PyTorch. A checkpoint of your own
is `importers.load("resnet18", "my_resnet18.pth")`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importers.adaptation import FreshHeadWarning
    from importers.conversion import convert
    from importers.downloads import download
    from importers.errors import (
        CheckpointError,
        DownloadError,
        FileFormatError,
        StateDictError,
        UnsafeFileError,
    )
    from importers.exporting import export, write_safetensors
    from importers.foreign_keys import ForeignKeysWarning
    from importers.loading import MissingPackageError, Pretrained, at_hand, available, load
    from importers.preprocessing import Preprocess
    from importers.selection import PrefixWarning
    from importers.state_dicts import read_state_dict

__all__ = [
    "CheckpointError",
    "DownloadError",
    "FileFormatError",
    "ForeignKeysWarning",
    "FreshHeadWarning",
    "MissingPackageError",
    "PrefixWarning",
    "Preprocess",
    "Pretrained",
    "StateDictError",
    "UnsafeFileError",
    "at_hand",
    "available",
    "convert",
    "download",
    "export",
    "load",
    "read_state_dict",
    "write_safetensors",
]

_MODULES = {
    "FreshHeadWarning": "adaptation",
    "convert": "conversion",
    "ForeignKeysWarning": "foreign_keys",
    "download": "downloads",
    "export": "exporting",
    "write_safetensors": "exporting",
    "MissingPackageError": "loading",
    "Pretrained": "loading",
    "at_hand": "loading",
    "available": "loading",
    "load": "loading",
    "Preprocess": "preprocessing",
    "PrefixWarning": "selection",
    "read_state_dict": "state_dicts",
}
"""Where each public name is defined; those not listed in `errors`."""


def __getattr__(name: str) -> Any:
    # A name is imported when it is first used: JAX and Flax take seconds, which
    # `python -m importers --help` need not wait for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
