"""What can go wrong between a checkpoint and a network."""

from tlv_jax.errors import TLVError

__all__ = [
    "CheckpointError",
    "DownloadError",
    "FileFormatError",
    "UnsafeFileError",
]


class CheckpointError(TLVError, ValueError):
    """A checkpoint cannot be had, read, or used. Root of the others here."""


class FileFormatError(CheckpointError):
    """A file is missing, damaged, or not a checkpoint of a known format."""


class UnsafeFileError(CheckpointError):
    """A file asks for more than tensors: to read it on would mean to run its code."""


class DownloadError(CheckpointError):
    """A file could not be downloaded, or is not the one that was published."""
