"""Tickets: how those who asked follow what becomes of a request.

async for event in ticket: ...       # how it stands, its text, and Ended as the last
async for event in told(tickets): ...  # of several, as they come
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from specrej.errors import SpecrejError
from specrej.search.events import Ended, Event, Queued

StreamEvent = Queued | Event
"""What a ticket tells: of a run, and of the time before it."""


class Ticket:
    """One request, as its submitter follows it.

    Args:
        cancel: ends the request with this number.
        number: of the request.
        num_ahead: requests that wait before it.
        is_watched: whether events before the last are wanted.
        place: of its prompt among those that were asked for together; its events say so.
    """

    def __init__(
        self,
        cancel: Callable[[int], None],
        number: int,
        num_ahead: int,
        *,
        is_watched: bool,
        place: int,
    ) -> None:
        self.number = number
        self.num_ahead = num_ahead
        self.is_watched = is_watched
        self.place = place
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        if self.is_watched:
            yield Queued(num_ahead=self.num_ahead)
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Ended):
                return

    def cancel(self) -> None:
        """Nobody waits for the answer: the request's memory is free within a step, and no event
        follows.
        """
        self._cancel(self.number)

    def tell(self, event: StreamEvent) -> None:
        """From the service's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


async def told(tickets: Sequence[Ticket]) -> AsyncIterator[StreamEvent]:
    """The events of all, as they come, to the last of each."""
    if len(tickets) == 1:
        async for event in tickets[0]:
            yield event
        return
    events: asyncio.Queue[StreamEvent] = asyncio.Queue()

    async def follow(ticket: Ticket) -> None:
        async for event in ticket:
            events.put_nowait(event)

    following = [asyncio.ensure_future(follow(ticket)) for ticket in tickets]
    num_open = len(tickets)
    try:
        while num_open:
            event = await events.get()
            num_open -= isinstance(event, Ended)
            yield event
    finally:
        for task in following:
            task.cancel()


async def ended_of(tickets: Sequence[Ticket]) -> list[Ended]:
    """How the requests have ended, in the order of their places; or the first that failed."""
    ended = []
    async for event in told(tickets):
        if isinstance(event, Ended):
            ended.append(event)
            if isinstance(event.outcome, SpecrejError):
                return [event]
    return sorted(ended, key=lambda event: event.prompt)
