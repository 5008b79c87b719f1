"""`python -m importers`: inspect, convert and verify checkpoints from the command line."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from importers.exits import exit_status

__all__ = ["Convert", "List", "Show", "Verify", "execute", "main"]

File = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class List:
    """List every architecture with its published weights.

    Attributes:
      json: print JSON in place of a table.
    """

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclasses.dataclass(frozen=True)
class Show:
    """Show the published weights of an architecture, and the keys of its checkpoints.

    Attributes:
      name: the architecture.
    """

    name: Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Check a checkpoint strictly and write it as .safetensors, with torch's names.

    torch and importers.load read that file without a pickle.

    Attributes:
      file: a .pth, .pt or .safetensors file.
      arch: its architecture.
      out: the file to write; an existing one is replaced.
      prefix: what the names of the wanted network begin with, if there are several in the file.
    """

    file: File
    arch: str
    out: Path
    prefix: str | None = None


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a checkpoint strictly, and its logits against torchvision's if that is installed.

    Attributes:
      file: a .pth, .pt or .safetensors file.
      arch: its architecture.
      prefix: what the names of the wanted network begin with, if there are several in the file.
    """

    file: File
    arch: str
    prefix: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for a failed check, 2 for bad input."""
    return execute(
        tyro.cli(
            List | Show | Convert | Verify,  # type: ignore[arg-type]
            prog="python -m importers",
            description="Inspect, convert and verify checkpoints of torchvision's networks.",
            args=arguments,
        )
    )


def execute(command: List | Show | Convert | Verify) -> int:
    """Runs one command, once its arguments are read; returns the exit status, as `main`."""
    return exit_status(lambda: _run(command))


def _run(command: List | Show | Convert | Verify) -> int:
    # Imported only now: it brings JAX and Flax, which --help need not wait for.
    from importers import commands

    match command:
        case List(json):
            return commands.list_weights(as_json=json)
        case Show(name):
            return commands.show(name)
        case Convert(file, arch, out, prefix):
            return commands.convert_file(file, arch, out, prefix)
        case Verify(file, arch, prefix):
            return commands.verify(file, arch, prefix)


if __name__ == "__main__":
    sys.exit(main())
