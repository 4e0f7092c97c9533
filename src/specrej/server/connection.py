"""A client that may go at any time: bodies read up to a limit, and work that ends when nobody waits
for it.

raw = await read_body(request, most_bytes, room)
outcome = await unless_gone(request.receive, work)
return EventStream(blocks, at_end=ticket.cancel)
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from specrej.server.guard import ClientGoneError
from specrej.server.lanes import Lane, Lanes, Room
from specrej.server.refusals import RefusalError

_BODY_S = 30.0
_DRAINED = 8
"""A body this many times as long as it may be is read to its end, and the client hears why it
was refused: most do not listen before they have sent everything."""

PROBE = b":\n\n"
"""A comment in a stream, which clients skip: to see whether one is still there (`protocol`)."""

T = TypeVar("T")


def declared_bytes(request: Request, most_bytes: int) -> int | None:
    """The length that a body says it has; None where it comes in chunks.

    Raises:
        RefusalError: it is longer than that; nothing of it is read.
    """
    given = request.headers.get("content-length")
    if given is None or not given.isdecimal():
        return None
    if len(given) > 18 or int(given) > most_bytes:
        raise _too_large(most_bytes)
    return int(given)


@asynccontextmanager
async def body_of(
    request: Request, lanes: Lanes, most_bytes: int
) -> AsyncIterator[tuple[Lane, bytes]]:
    """The body of a request, and the lane in which it keeps its room until the block ends.

    Raises:
        RefusalError: it is longer than that, takes too long to come, or has no room.
        ClientGoneError: the client went before its end.
    """
    declared = declared_bytes(request, most_bytes)
    lane = lanes.of(most_bytes if declared is None else declared)
    with lane.holding() as room:
        yield lane, await read_body(request, most_bytes, room)


async def read_body(request: Request, most_bytes: int, room: Room) -> bytes:
    """The body of a request, whether it says its length or comes in chunks.

    Raises:
        RefusalError: it is longer than that, takes too long to come, or has no room.
        ClientGoneError: the client went before its end.
    """
    body, num_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_S) as patience:
            room.begin(lambda: None if patience.expired() else patience.reschedule(0))
            async for piece in request.stream():
                num_bytes += len(piece)
                if num_bytes <= most_bytes:
                    room.grow(num_bytes)
                    body += piece
                elif num_bytes > _DRAINED * most_bytes:
                    break
        room.end()
    except TimeoutError:
        room.check()
        raise RefusalError("slow_body", f"the body did not come within {_BODY_S:g} s") from None
    except ClientDisconnect:
        raise ClientGoneError from None
    if num_bytes > most_bytes:
        raise _too_large(most_bytes)
    return bytes(body)


def _too_large(most_bytes: int) -> RefusalError:
    return RefusalError(
        "body_too_large", f"the body has more than the {most_bytes:,} bytes that it may have"
    )


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to. When the client goes first, the work is ended on the spot.

    Raises:
        ClientGoneError: the client has gone.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.wait({working, waiting})


class EventStream(Response):
    """Server-sent events, as they come, until they end or the client has gone.

    Args:
        blocks: the events, in bytes.
        at_end: called when nothing more is sent, whatever the reason.
    """

    media_type = "text/event-stream"

    def __init__(self, blocks: AsyncIterator[bytes], *, at_end: Callable[[], None]) -> None:
        # A proxy that collects a response before it passes it on would make a stream of it no more.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._blocks = blocks
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["probe"] = PROBE
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await unless_gone(receive, self._send_all(send))
        finally:
            self._at_end()

    async def _send_all(self, send: Send) -> None:
        async for block in self._blocks:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
