"""`python -m train`."""

import contextlib
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

import tyro

from importers.exits import plain_warnings
from train.config import Config

__all__ = ["DESCRIPTION", "execute", "main"]

DESCRIPTION = (
    "Transfer the pretrained weights of one network into another and train it with feature "
    "crossover, beside a twin that starts from its own initialization."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one experiment from the command line.

    Returns:
      The exit status: 0 when the run is finished, or has saved all because of SIGTERM; 130 when it
      has because of Ctrl-C; 1 after an error.
    """
    config = tyro.cli(Config, prog="python -m train", description=DESCRIPTION, args=arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return execute(config, ["python", "-m", "train", *given])


def execute(config: Config, command: Sequence[str]) -> int:
    """Runs one experiment, once its settings are read.

    Args:
      config: the settings.
      command: the words by which the run was started, to tell how it is resumed.

    Returns:
      The exit status, as `main`.
    """
    # Imported late: --help does not wait for JAX, Flax and Orbax.
    from tlv_jax.errors import TLVError
    from train.errors import Stopped
    from train.loop import run

    try:
        with _plain_messages():
            run(config)
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        again = _resuming(command, stop.folder.name)
        line = f"stopped after step {stop.step} of {stop.training!r}; continue with: {again}"
        print(line, file=sys.stderr)
        return 130 if stop.signal == signal.SIGINT else 0
    except KeyboardInterrupt:
        print(f"stopped; add --resume to continue the run in {config.out}", file=sys.stderr)
        return 130
    return 0


def _resuming(command: Sequence[str], name: str) -> str:
    """The command that resumes the run. Of an option that is given twice, the last counts."""
    more = ["--name", name, "--resume"]
    if list(command[-3:]) == more:  # it was resumed by this command before
        more = []
    return shlex.join([*command, *more])


@contextlib.contextmanager
def _plain_messages() -> Iterator[None]:
    """Prints warnings as one line each, and nothing of the threads that an error leaves behind.

    When Orbax cannot read or write an array, others of its callbacks fail at the same time. Python
    would print the traceback of each around the one sentence of the error.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with plain_warnings():
            yield
    finally:
        sys.unraisablehook = hook


if __name__ == "__main__":
    sys.exit(main())
