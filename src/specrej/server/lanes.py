"""What is done for a request before the queue, within bounds: bodies that will be refused do not
hold up the others.

    lane = lanes.of(num_bytes)
    with lane.holding() as room:
        # 429 where too many bytes are there already
        raw = await read_body(request, most_bytes, room)
        asked = await lane.parsing.do(len(raw), parse)
        await lane.tokenizing.do(len(raw), check)    # one at a time, the smallest first

Small bodies and large ones go by lanes of their own, so a small one never waits for a large one;
and what is tokenized does not hold up what is parsed, which tells how long it may take.

A body takes room as its bytes come, whatever length it declares. Where room is short, the body that
is not whole and has sent nothing for the longest time is refused, so connections that only wait
keep nobody out.
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
        free_bytes: that bodies may still take.

    Args:
        most_bytes: of all bodies that are read or wait at a time.
    """

    def __init__(self, most_bytes: int) -> None:
        self.parsing, self.tokenizing = Line(), Line()
        self.free_bytes = most_bytes
        self._reading: dict[Room, None] = {}
        """Of bodies that are not whole, the one first that has sent nothing for the longest
        time."""

    @contextmanager
    def holding(self) -> Iterator["Room"]:
        """What a body takes, from when its first byte is waited for until it is done with."""
        room = Room(self)
        try:
            yield room
        finally:
            self.end_reading(room)
            self.free(room)

    def take(self, room: "Room", num_bytes: int) -> None:
        """Have a body take so much more, from those that are silent if need be.

        Raises:
            RefusalError: those that are left are whole.
        """
        self.end_reading(room)
        while num_bytes > self.free_bytes and self._reading:
            silent = next(iter(self._reading))
            self.end_reading(silent)
            self.free(silent)
            silent.turn_away()
        if num_bytes > self.free_bytes:
            raise _no_room()
        self.free_bytes -= num_bytes
        room.num_bytes += num_bytes
        self._reading[room] = None

    def end_reading(self, room: "Room") -> None:
        """From here on a body keeps what it has."""
        self._reading.pop(room, None)

    def free(self, room: "Room") -> None:
        """Take back what a body has."""
        self.free_bytes += room.num_bytes
        room.num_bytes = 0


class Room:
    """What one body takes of its lane.

    Attributes:
        num_bytes: that count as taken.
    """

    def __init__(self, lane: Lane) -> None:
        self.num_bytes = 0
        self._lane = lane
        self._is_turned_away = False
        self._give_up: Callable[[], None] = lambda: None

    def begin(self, give_up: Callable[[], None]) -> None:
        """Before the first byte comes.

        Args:
            give_up: ends the reading, which then calls `check`. Called at most once, when others
                need the room.

        Raises:
            RefusalError: there is no room.
        """
        self._give_up = give_up
        self._lane.take(self, _LEAST_BYTES)

    def grow(self, num_bytes: int) -> None:
        """When so many bytes have come in all.

        Raises:
            RefusalError: there is no room.
        """
        self.check()
        self._lane.take(self, max(num_bytes - self.num_bytes, 0))

    def end(self) -> None:
        """When the body is whole, and can be turned away no more.

        Raises:
            RefusalError: it was, before.
        """
        self.check()
        self._lane.end_reading(self)

    def turn_away(self) -> None:
        """What it had goes to others."""
        self._is_turned_away = True
        self._give_up()

    def check(self) -> None:
        """See that it was not turned away.

        Raises:
            RefusalError: it was.
        """
        if self._is_turned_away:
            raise _no_room()


def _no_room() -> RefusalError:
    message = (
        "there is no room for this body beside others that came sooner or faster; send it again in "
        "1 s"
    )
    return RefusalError("too_many_bodies", message, headers={"Retry-After": "1"})


class Line:
    """Work that is done one at a time, on a thread that ends when there is none."""

    def __init__(self) -> None:
        self._jobs: list[tuple[int, int, Callable[[], Any], Future[Any]]] = []
        self._numbering = itertools.count()
        self._lock = Lock()
        self._is_running = False

    async def do(self, num_bytes: int, work: Callable[[], T]) -> T:
        """What the work comes to; that for fewer bytes goes first. Cancelled before its turn, it
        is not begun.
        """
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
            except (
                BaseException
            ) as error:  # an event loop takes some for its own end, and StopIteration not at all
                failure = SpecrejError(f"what reads requests failed: {named(error)}")
                failure.__cause__ = error
                future.set_exception(failure)
        return True
