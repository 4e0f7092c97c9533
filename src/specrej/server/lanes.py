"""What is done for a request before the queue, within bounds: bodies that will be refused do not hold up the others.

    lane = lanes.of(num_bytes)
    with lane.holding(num_bytes):                    # 429 where too many bytes are there already
        asked = await lane.parsing.do(len(raw), parse)
        await lane.tokenizing.do(len(raw), check)    # one at a time, the smallest first

Small bodies and large ones go by lanes of their own, so a small one never waits for a large one; and what is tokenized
does not hold up what is parsed, which tells how long it may take.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, TypeVar

from specrej.errors import SpecrejError, named
from specrej.server.refusals import RefusalError

_SMALL_BYTES = 2**16
_LANE_BYTES = 2**24
"""Of all bodies in a lane."""
_LEAST_BYTES = 2**14
"""That a body counts with: a connection costs about as much."""

T = TypeVar("T")


class Lanes:
    """One for small bodies, one for large ones.

    Args:
        most_bytes: of one body.
    """

    def __init__(self, most_bytes: int) -> None:
        self._small, self._large = Lane(_LANE_BYTES), Lane(max(_LANE_BYTES, most_bytes))

    def of(self, num_bytes: int) -> "Lane":
        """The lane of a body of this size."""
        return self._small if num_bytes <= _SMALL_BYTES else self._large


class Lane:
    """What is done for bodies. Belongs to an event loop.

    Attributes:
        parsing, tokenizing: the two things that are done for each.

    Args:
        most_bytes: of all bodies that are read or wait at a time.
    """

    def __init__(self, most_bytes: int) -> None:
        self.parsing, self.tokenizing = Line(), Line()
        self._free_bytes = most_bytes

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Room for a body of this size.

        Raises:
            RefusalError: there is none.
        """
        counted = max(num_bytes, _LEAST_BYTES)
        if counted > self._free_bytes:
            message = f"there is no room for a body of {num_bytes:,} bytes beside those being read; try again in 1 s"
            raise RefusalError("too_many_bodies", message, headers={"Retry-After": "1"})
        self._free_bytes -= counted
        try:
            yield
        finally:
            self._free_bytes += counted


class Line:
    """Work that is done one at a time, on a thread that ends when there is none."""

    def __init__(self) -> None:
        self._jobs: list[tuple[int, int, Callable[[], Any], Future[Any]]] = []
        self._numbering = itertools.count()
        self._lock = Lock()
        self._is_running = False

    async def do(self, num_bytes: int, work: Callable[[], T]) -> T:
        """What the work comes to; that for fewer bytes goes first. Cancelled before its turn, it is not begun."""
        future: Future[T] = Future()
        with self._lock:
            heapq.heappush(self._jobs, (num_bytes, next(self._numbering), work, future))
            is_idle, self._is_running = not self._is_running, True
        if is_idle:
            Thread(target=self._run, name="desk", daemon=True).start()
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do what is next; False if there is nothing. Nothing of it is held afterwards."""
        with self._lock:
            if not self._jobs:
                self._is_running = False
                return False
            *_, work, future = heapq.heappop(self._jobs)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except (SpecrejError, RefusalError) as error:
                future.set_exception(error)
            except BaseException as error:  # an event loop takes some for its own end, and StopIteration not at all
                failure = SpecrejError(f"what reads requests failed: {named(error)}")
                failure.__cause__ = error
                future.set_exception(failure)
        return True
