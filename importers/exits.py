"""How a command ends: what it prints of warnings and errors, and its exit status."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

__all__ = ["exit_status", "plain_warnings"]


def exit_status(command: Callable[[], int]) -> int:
    """Runs a command; an error is one paragraph on standard error, without a traceback.

    Args:
      command: returns its exit status.

    Returns:
      That status; 2 for bad input, 130 after Ctrl-C, and 0 if the reader of the output has closed
      it.
    """
    # Imported only now: it brings JAX, which --help need not wait for.
    from tlv_jax.errors import TLVError

    try:
        with plain_warnings():
            status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        # Python flushes what is left when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TLVError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"error: {named}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 2


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints warnings as one line each, without the line of code that warned."""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        yield


def _print_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
