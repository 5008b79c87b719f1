"""When a training saves in the middle of an epoch, and when it stops because of a signal."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["Due", "Watch", "watch"]

AGREE_EVERY = 10  # steps; hosts wait for each other whenever they agree


class Due(NamedTuple):
    """What to do after a step.

    Attributes:
      save: whether to save a checkpoint.
      stop: whether to stop, once that is saved.
    """

    save: bool
    stop: bool


class Watch:
    """Says after each step what is due, the same on all hosts.

    Attributes:
      signal: the one that asked this process to stop; None so far.
    """

    def __init__(self, every_steps: int | None = None, every_minutes: float | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._every_steps = every_steps
        self._seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.restart()

    def restart(self) -> None:
        """Counts the minutes from now on: something was saved."""
        self._last_save = time.monotonic()

    def due(self, step: int, *, agree: bool = False) -> Due:
        """Returns what is due after this step.

        Several hosts agree every 10 steps only, as each has a clock and signals of its own.

        Args:
          step: steps done so far, the same on all hosts.
          agree: whether hosts agree at this step in any case.
        """
        counted = self._every_steps is not None and step % self._every_steps == 0
        stop = self.signal is not None
        late = time.monotonic() - self._last_save >= self._seconds
        if jax.process_count() > 1:
            late, stop = self._anywhere(late, stop) if agree or step % AGREE_EVERY == 0 else (0, 0)
        return Due(save=bool(counted or late or stop), stop=bool(stop))

    def _anywhere(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on some host."""
        return tuple(multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist())


@contextlib.contextmanager
def watch(every_steps: int | None, every_minutes: float | None) -> Iterator[Watch]:
    """Watches for SIGTERM and Ctrl-C, of which the first is only noted, to be asked for by `due`.

    The second acts as before, at once. So does the first outside of the main thread, where no
    signals arrive, and where the process ignores them.

    Args:
      every_steps: save whenever so many steps are done; None: do not.
      every_minutes: save so long after the last save; None: do not.
    """
    watched = Watch(every_steps, every_minutes)
    before = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, frame: FrameType | None) -> None:
        watched.signal = signal.Signals(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield watched
    finally:
        restore()
