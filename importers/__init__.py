"""Pretrained weights for `tlv_jax.models`, read strictly and without torch.

pretrained = importers.load("efficientnet_lite0")
images = pretrained.preprocess(picture)
logits = pretrained.model.apply(pretrained.variables, images)
pretrained.categories[logits[0].argmax()]

state_dict = importers.read_state_dict("my_resnet18.pth")
params, batch_stats = importers.convert("resnet18", state_dict)
torch_model.load_state_dict(importers.export("resnet18", params, batch_stats))
"""

from importers.adaptation import FreshHeadWarning
from importers.conversion import StateDictError, convert
from importers.downloads import download
from importers.errors import CheckpointError, DownloadError, FileFormatError, UnsafeFileError
from importers.exporting import export, write_safetensors
from importers.loading import MissingPackageError, Pretrained, available, load
from importers.preprocessing import Preprocess
from importers.state_dicts import read_state_dict

__all__ = [
    "CheckpointError",
    "DownloadError",
    "FileFormatError",
    "FreshHeadWarning",
    "MissingPackageError",
    "Preprocess",
    "Pretrained",
    "StateDictError",
    "UnsafeFileError",
    "available",
    "convert",
    "download",
    "export",
    "load",
    "read_state_dict",
    "write_safetensors",
]
