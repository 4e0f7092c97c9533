"""The events of a ticket as server-sent events, as OpenAI's clients read them.

    # bytes, each a whole event or comment
    async for block in blocks(ticket, head, finish, note): ...

Text goes out as soon as no other candidate can beat it, and never anything else: joined, the pieces
are the text of the answer that a request without a stream gets. Until then there is progress, as
comments or as events of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrej.errors import SpecrejError
from specrej.search.events import Decided, Ended, Queued, Started, Step, Text, payload_of
from specrej.server.asked import Asked
from specrej.server.echoing import united
from specrej.server.refusals import internal_error, refusal_of
from specrej.server.service import StreamEvent
from specrej.types import Result

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that no proxy takes the connection for dead."""

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

Finish = Callable[[Result, bool, int], Awaitable[dict[str, Any]]]
"""The body of an answer that is not streamed, from its result, whether it is late, and which prompt
it is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What all chunks of an answer begin with.

    Attributes:
        asked: the request.
        id, created, model: as in the body of an answer that is not streamed.
        echoes: what the answers to each prompt begin with.
    """

    asked: Asked
    id: str
    created: int
    model: str
    echoes: Sequence[str] = ("",)

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

    def progress(self, event: Queued | Started | Step | Decided) -> bytes:
        payload = payload_of(event)
        if len(self.echoes) > 1 and not isinstance(event, Queued):
            payload["prompt"] = event.prompt
        if not self.asked.has_progress:
            return f": progress {json.dumps(payload)}\n\n".encode()
        # Clients of OpenAI's look for choices in whatever comes.
        return self.block("specrej.progress", {"choices": [], "progress": payload})

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        return self.block(self._kind, {"choices": [], "usage": usage})

    def first_of(self, place: int) -> int:
        """The index of the best answer to a prompt."""
        return place * self.asked.request.num_answers

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
    sent, bodies = list(head.echoes), dict[int, Mapping[str, Any]]()
    for place, echo in enumerate(sent):
        if echo:
            yield head.chunk(head.first_of(place), {"content": echo})
    async for event in _with_pauses(events):
        match event:
            case None:
                yield _KEEP_ALIVE
            case Queued() | Started() | Step() | Decided():
                yield head.progress(event)
            case Text(delta, place):
                sent[place] += delta
                yield head.chunk(head.first_of(place), {"content": delta})
            case Ended(SpecrejError() as error):
                yield _data(refusal_of(error, {}).body)
                return
            case Ended(Result() as result, is_late, place):
                bodies[place] = await finish(result, is_late, place)
                whole = None
                if len(bodies) == len(sent):
                    whole = united([bodies[number] for number in sorted(bodies)])
                # Made as a whole: an error is not to come behind an end.
                for block in list(_ending(head, bodies[place], sent[place], whole)):
                    yield block


async def at_once(head: Head, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """What is sent where the whole body is there before anything is sent."""
    for block in _ending(head, body, "", body):
        yield block


def _ending(
    head: Head, body: Mapping[str, Any], sent: str, whole: Mapping[str, Any] | None
) -> Iterator[bytes]:
    """What is left of a prompt's answer when it is complete, and the other answers. With the whole,
    where no other prompt is left: usage, and the end.
    """
    choices = body["choices"]
    for position, choice in enumerate(choices):
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if position:
            yield from head.opening(choice["index"])
        else:
            if not text.startswith(sent):
                raise RuntimeError("what was streamed is not how the answer begins")
            text = text[len(sent) :]
        if text:
            yield head.chunk(choice["index"], {"content": text})
        is_last = position == len(choices) - 1
        own = {"specrej": whole["specrej"]} if whole is not None and is_last else {}
        ending = {"finish_reason": choice["finish_reason"], "logprobs": choice["logprobs"]}
        yield head.chunk(choice["index"], {}, **ending, **own)
    if whole is not None:
        if head.asked.has_usage:
            yield head.usage(whole["usage"])
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
