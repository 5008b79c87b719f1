"""The settings of commands on two networks. Imports neither JAX nor Flax: `--help` is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from train.config import MethodName

__all__ = ["Export", "Fit", "Pair", "Plan", "Report", "Similarity", "Start", "Transfer"]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A source and a target."""

    src: str
    """Architecture of the source; "tlv-jax list" names them all."""
    dst: str
    """Architecture of the target, or MODULE:NAME of your own Flax module, Linen or NNX."""
    src_weights: Path | None = None
    """A .pth or .safetensors file of the source; by default its published weights."""
    src_prefix: str | None = None
    """What the names of the source begin with, if that file holds several networks."""
    dst_weights: Path | None = None
    """A .pth or .safetensors file of the target, the folder of a run, or an Orbax checkpoint; by
    default the target starts from a fresh initialization."""
    dst_args: tuple[str, ...] = ()
    """Arguments of your own module: --dst-args width=0.5 depth=3."""
    num_classes: int | None = None
    """Of the target; by default those of --dst-weights, or 1000."""
    image_size: int | None = None
    """Pixels a side of the target's images; by default as in --dst-weights, or 224."""
    json: Flag = False
    """Print JSON in place of text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(Pair):
    """Tell how alike two networks are, from 0 to 1. Needs no weights.

    Transfers between networks below 0.5 mostly hurt.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Pair):
    """Print who gives what to whom in a transfer. Needs no weights."""

    method: MethodName = "default"
    """How the transfer is made, see docs/methods.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start(Plan):
    """What a target starts from: its own weights, and what it is given."""

    seed: int = 0
    """Of the target's initialization and of the transfer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Start):
    """Make a transfer and print what each layer of the target receives."""

    html: Path | None = None
    """Also write the report as a page for browsers to this file; an existing one is replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Start):
    """Carry the weights of one network into another, and write the other.

    Without --out it prints the plan and the report.
    """

    out: Path | None = None
    """The .safetensors or .pth file to write, with torchvision's names; an existing one is
    replaced. For your own module, .safetensors with the paths of its parameters as names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Transfer):
    """Solve for the kernels of one network, so that it computes what another computes of pictures.

    The pictures need no labels. Their memory grows with their number and size.
    """

    images: Path
    """Folder of pictures of the task, in sub-folders or not. They are normalized as the source
    expects."""
    count: int = 256
    """Most pictures that are used, drawn by --seed."""
    image_size: int = 96
    """Pixels a side, to which pictures are resized; best as in the training that follows."""
    html: Path | None = None
    """Also write the report as a page for browsers to this file; an existing one is replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write the weights of a run, or of an Orbax checkpoint, as .pth or .safetensors.

    Of a run it takes those that were best on the validation images.
    """

    what: Annotated[Path, tyro.conf.Positional]
    """The folder of a run, or an Orbax checkpoint of variables or parameters."""
    out: Path
    """The .safetensors or .pth file to write, with torchvision's names; an existing one is
    replaced. For your own module, .safetensors with the paths of its parameters as names."""
    arch: str | None = None
    """Its architecture, or MODULE:NAME of your own; by default the target of the run."""
