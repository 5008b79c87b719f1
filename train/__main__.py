"""`python -m train`, also installed as `tlv-jax`."""

import sys
import warnings
from collections.abc import Sequence

import tyro

from train.config import Config

__all__ = ["main"]

DESCRIPTION = (
    "Transfer the pretrained weights of one network into another and train it with feature "
    "crossover, beside a twin that starts from its own initialization."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one experiment from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m train", description=DESCRIPTION, args=arguments)
    # Imported late: --help does not wait for JAX, Flax and Orbax.
    from tlv_jax.errors import TLVError
    from train.loop import run

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            run(config)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; add --resume to continue the run in {config.out}", file=sys.stderr)
        return 130
    return 0


def _print_warning(message: Warning | str, *_: object) -> None:
    """One readable line, without the line of code that warned."""
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
