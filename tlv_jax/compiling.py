"""Compile programs on a thread of their own, before they are called."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
from jax.stages import Lowered

__all__ = ["CompilingAhead"]

T = TypeVar("T")


class CompilingAhead:
    """Programs that another thread compiles while this one goes on.

    A jitted function finds the program that was lowered for the same types and has been compiled.
    One that is called while its program is still being compiled would compile it again: `before`
    waits. A program that could not be compiled says so where it is called.
    """

    def __init__(self) -> None:
        self._programs: dict[tuple[str, int], Future[object]] | None = None

    def start(self, programs: Iterable[tuple[str, int, Lowered]]) -> None:
        """Starts to compile; does nothing, and lowers nothing, if that was done before.

        Args:
          programs: in the order in which they will be needed, each with its kind and the number of
            the item for which it is needed; an item may need several.
        """
        config: Any = jax.config
        if self._programs is not None or config.jax_disable_jit:
            return
        self._programs = {}
        # One thread: the one that calls has programs of its own to compile, on as few as two cores.
        thread = ThreadPoolExecutor(1, "tlv_jax compiles")
        for kind, number, lowered in programs:
            self._programs[kind, number] = thread.submit(_compile, lowered)
        thread.shutdown(wait=False)

    def before(self, kind: str, items: Iterator[T]) -> Iterator[T]:
        """The items, each asked for only when the programs are there that it needs."""
        for number in itertools.count():
            if self._programs and (kind, number) in self._programs:
                self._programs[kind, number].exception()  # waits, and raises nothing
            try:
                yield next(items)
            except StopIteration:
                return


def _compile(lowered: Lowered) -> None:
    """Returns nothing: JAX keeps the program, and may forget it."""
    lowered.compile()
