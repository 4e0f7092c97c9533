"""The events of a ticket as server-sent events, as OpenAI's clients read them.

    # bytes, each a whole event or comment
    async for block in blocks(ticket, head, finish, note): ...

Text goes out as soon as no other candidate can beat it, and never anything else: joined, the pieces
are the text of the answer that a request without a stream gets. Until then there is progress, as
comments or as events of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from specrej.errors import SpecrejError
from specrej.hub.tool_formats import ToolForm
from specrej.search.events import Decided, Ended, Queued, Started, Step, Text, payload_of
from specrej.server.asked import Asked
from specrej.server.calling import CertainText
from specrej.server.refusals import internal_error, refusal_of
from specrej.server.service import StreamEvent
from specrej.types import Result

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that no proxy takes the connection for dead."""

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

Finish = Callable[[Result, bool], Awaitable[dict[str, Any]]]
"""The body of an answer that is not streamed, from its result and whether it is late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What all chunks of an answer begin with.

    Attributes:
        asked: the request.
        id, created, model: as in the body of an answer that is not streamed.
        tool_form: how calls stand in the answer, where functions may be called.
    """

    asked: Asked
    id: str
    created: int
    model: str
    tool_form: ToolForm | None = None

    def block(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        return _data(
            {"id": self.id, "object": kind, "created": self.created, "model": self.model, **fields}
        )

    def chunk(self, index: int, delta: Mapping[str, Any], **more: Any) -> bytes:
        """A piece of the answer with this index; `more` is what differs from a chunk in the
        middle.
        """
        is_chat = self.asked.request.kind == "chat"
        own = {"delta": delta} if is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **own, "logprobs": more.pop("logprobs", None)}
        choice["finish_reason"] = more.pop("finish_reason", None)
        return self.block(self._kind, {"choices": [choice], **self._no_usage, **more})

    def opening(self, index: int) -> Iterator[bytes]:
        """The role, which in a chat comes before anything else."""
        if self.asked.request.kind == "chat":
            yield self.chunk(index, {"role": "assistant", "content": ""})

    def progress(self, payload: Mapping[str, Any]) -> bytes:
        if not self.asked.has_progress:
            return f": progress {json.dumps(payload)}\n\n".encode()
        # Clients of OpenAI's look for choices in whatever comes.
        return self.block("specrej.progress", {"choices": [], "progress": payload})

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        return self.block(self._kind, {"choices": [], "usage": usage})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.asked.request.kind == "chat" else "text_completion"

    @property
    def _no_usage(self) -> dict[str, None]:
        return {"usage": None} if self.asked.has_usage else {}


async def blocks(
    events: AsyncIterator[StreamEvent],
    head: Head,
    finish: Finish,
    note: Callable[[Exception], None],
) -> AsyncIterator[bytes]:
    """What is sent for the events of a request.

    An error, once the stream has begun, is an event of its own, with nothing behind it: whatever
    goes wrong, the connection ends in order.

    Args:
        events: of the request's ticket.
        head: what chunks begin with.
        finish: makes the body that the request would get without a stream.
        note: is told of what should not have happened.
    """
    try:
        async for block in _blocks(events, head, finish):
            yield block
    except Exception as error:
        note(error)
        yield _data(internal_error().body)


async def _blocks(
    events: AsyncIterator[StreamEvent], head: Head, finish: Finish
) -> AsyncIterator[bytes]:
    for block in head.opening(0):
        yield block
    text = CertainText(head.tool_form)
    async for event in _with_pauses(events):
        match event:
            case None:
                yield _KEEP_ALIVE
            case Queued() | Started() | Step() | Decided():
                yield head.progress(payload_of(event))
            case Text(delta):
                if certain := text.add(delta):
                    yield head.chunk(0, {"content": certain})
            case Ended(SpecrejError() as error):
                yield _data(refusal_of(error, {}).body)
            case Ended(Result() as result, is_late):
                # Made as a whole: an error is not to come behind an end.
                for block in list(_ending(head, await finish(result, is_late), text.sent)):
                    yield block


def _ending(head: Head, body: Mapping[str, Any], sent: str) -> Iterator[bytes]:
    """What is left of the answer when it is complete, the other answers, usage, and the end."""
    choices = body["choices"]
    for position, choice in enumerate(choices):
        message = choice.get("message", {})
        text = choice["text"] if "text" in choice else message["content"] or ""
        if position:
            yield from head.opening(position)
        else:
            if not text.startswith(sent):
                raise RuntimeError("what was streamed is not how the answer begins")
            text = text[len(sent) :]
        if text:
            yield head.chunk(position, {"content": text})
        if calls := message.get("tool_calls"):
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            yield head.chunk(position, {"tool_calls": numbered})
        own = {"specrej": body["specrej"]} if position == len(choices) - 1 else {}
        ending = {"finish_reason": choice["finish_reason"], "logprobs": choice["logprobs"]}
        yield head.chunk(position, {}, **ending, **own)
    if head.asked.has_usage:
        yield head.usage(body["usage"])
    yield _DONE


async def _with_pauses(events: AsyncIterator[StreamEvent]) -> AsyncIterator[StreamEvent | None]:
    """The events, and None after each while without one."""
    iterator = aiter(events)
    while True:
        coming = asyncio.ensure_future(anext(iterator, None))
        try:
            while not (await asyncio.wait({coming}, timeout=KEEP_ALIVE_S))[0]:
                yield None
        finally:
            coming.cancel()  # nobody waits any more; one that has come is not touched by it
        event = coming.result()
        if event is None:
            return
        yield event


def _data(fields: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()
