"""Work on the next items while the last one is used, in Grain's threads or processes."""

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any

from train.decoding import catch_warnings

__all__ = ["work_ahead"]

MOST_THREADS = 16

_process = contextlib.ExitStack()  # what a process of Grain's holds as long as it lives


@dataclasses.dataclass(frozen=True)
class _Parcel:
    """What Grain passes on as it is.

    An array it would put into shared memory, of which a container has little, and which outlives an
    iterator that is closed early.
    """

    content: Any


def work_ahead(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Generator[Any, None, None]:
    """Yields `work(item)` for each item in order, and begins with the next ones meanwhile.

    Close the iterator where it may be left before its end, by `contextlib.closing`: its threads or
    processes go on else. What `work` raises is raised here, in its turn.

    Args:
      work: what to do. Processes receive it and the items by pickle.
      items: what to work on.
      workers: number of processes, of one thread each; 0: one thread here for each core.
    """
    # Late: only streaming needs them.
    import grain
    from absl import flags

    threads = 1 if workers else min(MOST_THREADS, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    packed = functools.partial(_packed, work)
    made = grain.MapDataset.source(items).map(packed).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own, which only absl.app.run parses
            flags.FLAGS.mark_as_parsed()
        made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _begin)
    with catch_warnings(), contextlib.closing(iter(made)) as parcels:
        for parcel in parcels:
            yield parcel.content


def _packed(work: Callable[[Any], Any], item: Any) -> _Parcel:
    return _Parcel(work(item))


def _begin(number: int, count: int) -> None:
    """Prepares a process, which reads until its iterator is closed."""
    # Ctrl-C reaches all processes; the first one saves its step and then closes the iterator.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _process.enter_context(catch_warnings())
