"""`python -m train`, also installed as `tlv-jax`."""

import sys
from collections.abc import Sequence

import tyro

from train.config import Config

__all__ = ["main"]

DESCRIPTION = """Carries the pretrained weights of one architecture into another and trains it with
feature crossover, beside a He-initialized twin."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one experiment from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m train", description=DESCRIPTION, args=arguments)
    # Late: --help does not wait for JAX, Flax and Orbax.
    from tlv_jax.errors import TLVError
    from train.loop import fit

    try:
        fit(config)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; --resume goes on with the run in {config.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
