"""`python -m train.rank`."""

import sys
from collections.abc import Sequence

import tyro

from train.rank.settings import Settings

__all__ = ["DESCRIPTION", "execute", "main"]

DESCRIPTION = (
    "Rank pretrained networks on your images: a linear classifier on the features of each, frozen, "
    "is fitted to the training images and scored on the validation images. Nothing is trained."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ranks from the command line; returns the exit status, as `execute`."""
    return execute(
        tyro.cli(Settings, prog="python -m train.rank", description=DESCRIPTION, args=arguments)
    )


def execute(settings: Settings) -> int:
    """Ranks, once the settings are read.

    Returns:
      The exit status: 0; 1 after an error, or if no source could be ranked; 130 after Ctrl-C.
    """
    # Imported late: --help does not wait for JAX and Flax.
    from tlv_jax.errors import TLVError
    from train.rank.running import rank

    try:
        ranking = rank(settings)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if ranking.best else 1


if __name__ == "__main__":
    sys.exit(main())
