"""What can go wrong between a checkpoint and a network."""

from tlv_jax.errors import TLVError

__all__ = [
    "CheckpointError",
    "DownloadError",
    "FileFormatError",
    "StateDictError",
    "UnsafeFileError",
]


class CheckpointError(TLVError, ValueError):
    """A checkpoint cannot be found, read, or used. Base of the other errors here."""


class FileFormatError(CheckpointError):
    """A file is missing, damaged, or not a checkpoint in a known format."""


class UnsafeFileError(CheckpointError):
    """What a pickle names in place of tensors is a class or function, whose code would run."""


class StateDictError(CheckpointError):
    """A state dict does not fit the architecture it is converted to."""


class DownloadError(CheckpointError):
    """A file could not be downloaded, or is not the published one."""
