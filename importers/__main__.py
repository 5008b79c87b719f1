"""`python -m importers`: inspect, convert and verify checkpoints from the command line."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["main"]

File = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class List:
    """List every architecture with its published weights."""


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
    command = tyro.cli(
        List | Show | Convert | Verify,  # type: ignore[arg-type]
        prog="python -m importers",
        description="Inspect, convert and verify checkpoints of torchvision's networks.",
        args=arguments,
    )
    # Imported only now: it brings JAX and Flax, which --help need not wait for.
    from importers import CheckpointError, commands
    from tlv_jax.errors import TLVError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            match command:
                case List():
                    return commands.list_weights()
                case Show(name):
                    return commands.show(name)
                case Convert(file, arch, out, prefix):
                    return commands.convert_file(file, arch, out, prefix)
                case Verify(file, arch, prefix):
                    return commands.verify(file, arch, prefix)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        # Python flushes what is left when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TLVError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _print_warning(message: Warning | str, *_: object) -> None:
    """One readable line, without the line of code that warned."""
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
