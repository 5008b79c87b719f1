"""`python -m train.compare`."""

import sys
from collections.abc import Sequence

import tyro

from train.compare.settings import Settings

__all__ = ["DESCRIPTION", "execute", "main"]

DESCRIPTION = (
    "Train one network from several starts, on the same images and under one budget, and report "
    "whether a transfer helps. Rerun the same command to continue where it was stopped."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a comparison from the command line; returns the exit status."""
    return execute(
        tyro.cli(Settings, prog="python -m train.compare", description=DESCRIPTION, args=arguments)
    )


def execute(settings: Settings) -> int:
    """Runs a comparison, once its settings are read; returns the exit status."""
    # Imported late: --help does not wait for JAX and Flax.
    from tlv_jax.errors import TLVError
    from train.compare.comparison import compare

    try:
        compare(settings)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
