"""The events of a ticket as server-sent events, as OpenAI's clients read them.

    # bytes, each a whole event or comment
    async for block in blocks(ticket, head, finish, note): ...

Text goes out as soon as no other candidate can beat it, and never anything else: joined, the pieces
are the text of the answer that a request without a stream gets. Until then there is progress, as
comments or as events of its own.
"""

import asyncio
import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Protocol

from specrej.errors import SpecrejError
from specrej.hub.thinking import Thinking
from specrej.hub.tool_formats import ToolForm
from specrej.search.events import Decided, Ended, Queued, Started, Step, Text, payload_of
from specrej.server.asked import Asked
from specrej.server.calling import CertainText
from specrej.server.echoing import united
from specrej.server.refusals import RefusalError, internal_error, refusal_of
from specrej.server.service import StreamEvent
from specrej.types import Result

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that no proxy takes the connection for dead."""

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

Finish = Callable[[Result, bool, int], Awaitable[dict[str, Any]]]
"""The body of an answer that is not streamed, from its result, whether it is late, and which prompt
it is of."""


class Writer(Protocol):
    """How an endpoint writes the answer to one request."""

    @property
    def asked(self) -> Asked:
        """The request."""

    @property
    def id(self) -> str:
        """Of the answer."""

    @property
    def created(self) -> int:
        """In seconds since 1970."""

    @property
    def model(self) -> str:
        """What answers."""

    def whole(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        """The body of an answer that is not streamed, from the completion that it is made of."""

    def begin(self) -> Iterable[bytes]:
        """What comes first."""

    def progress(self, payload: Mapping[str, Any]) -> bytes:
        """How the request stands."""

    def text(self, delta: str, place: int, thought: str) -> Iterable[bytes]:
        """A piece of the answer to the prompt with this place among several, and what was thought
        before it.
        """

    def end(
        self, completion: Mapping[str, Any], sent: str, whole: Mapping[str, Any] | None
    ) -> Iterable[bytes]:
        """What is left when a prompt's answer is complete, of which this was sent. With the whole,
        where no other prompt is left, also what comes last.
        """

    def failure(self, refusal: RefusalError) -> bytes:
        """Why there is no answer; nothing follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Implements `Writer` for chats and texts: what all chunks of an answer begin with.

    Attributes:
        asked: the request.
        id, created, model: as in the body of an answer that is not streamed.
    """

    asked: Asked
    id: str
    created: int
    model: str

    def whole(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        """The completion is the body."""
        return completion

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

    def begin(self) -> Iterator[bytes]:
        return self.opening(0)

    def text(self, delta: str, place: int, thought: str) -> Iterator[bytes]:
        """The thought comes at the end."""
        yield self.chunk(place * self.asked.request.num_answers, {"content": delta})

    def progress(self, payload: Mapping[str, Any]) -> bytes:
        if not self.asked.has_progress:
            return comment(payload)
        # Clients of OpenAI's look for choices in whatever comes.
        return self.block("specrej.progress", {"choices": [], "progress": payload})

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        return self.block(self._kind, {"choices": [], "usage": usage})

    def end(
        self, completion: Mapping[str, Any], sent: str, whole: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """The rest of the best answer, the other answers, usage, and the end."""
        choices = completion["choices"]
        for position, choice in enumerate(choices):
            index, text = choice["index"], _text_of(choice)
            if position:
                yield from self.opening(index)
            else:
                text = text[len(sent) :]
            if thought := choice.get("message", {}).get("reasoning_content"):
                yield self.chunk(index, {"reasoning_content": thought})
            if text:
                yield self.chunk(index, {"content": text})
            if calls := choice.get("message", {}).get("tool_calls"):
                numbered = [{"index": number, **call} for number, call in enumerate(calls)]
                yield self.chunk(index, {"tool_calls": numbered})
            is_last = whole is not None and position == len(choices) - 1
            own = {"specrej": whole["specrej"]} if whole is not None and is_last else {}
            ending = {"finish_reason": choice["finish_reason"], "logprobs": choice["logprobs"]}
            yield self.chunk(index, {}, **ending, **own)
        if whole is not None:
            if self.asked.has_usage:
                yield self.usage(whole["usage"])
            yield _DONE

    def failure(self, refusal: RefusalError) -> bytes:
        return _data(refusal.body)

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.asked.request.kind == "chat" else "text_completion"

    @property
    def _no_usage(self) -> dict[str, None]:
        return {"usage": None} if self.asked.has_usage else {}


async def blocks(
    events: AsyncIterator[StreamEvent],
    head: Writer,
    finish: Finish,
    note: Callable[[Exception], None],
    form: ToolForm | None = None,
    echoes: Sequence[str] = ("",),
    thinking: Thinking | None = None,
) -> AsyncIterator[bytes]:
    """What is sent for the events of a request.

    An error, once the stream has begun, is an event of its own, with nothing behind it: whatever
    goes wrong, the connection ends in order.

    Args:
        events: of the request's ticket.
        head: writes the answer.
        finish: makes the completion that the answer is made of without a stream.
        note: is told of what should not have happened.
        form: how calls of functions stand in the answer; None where there are none.
        echoes: what the answers to each prompt begin with.
        thinking: how thoughts stand in the answer; None where there are none.
    """
    texts = [CertainText(form, thinking) for _ in echoes]
    try:
        async for block in _blocks(events, head, finish, texts, echoes):
            yield block
    except Exception as error:
        note(error)
        yield head.failure(internal_error())


async def _blocks(
    events: AsyncIterator[StreamEvent],
    head: Writer,
    finish: Finish,
    texts: Sequence[CertainText],
    echoes: Sequence[str],
) -> AsyncIterator[bytes]:
    for block in head.begin():
        yield block
    bodies = dict[int, Mapping[str, Any]]()
    for place, echo in enumerate(echoes):
        if certain := texts[place].add(echo):
            for block in head.text(certain, place, ""):
                yield block
    async for event in _with_pauses(events):
        match event:
            case None:
                yield _KEEP_ALIVE
            case Queued() | Started() | Step() | Decided():
                yield head.progress(_payload(event, len(echoes)))
            case Text(delta, place):
                if certain := texts[place].add(delta):
                    for block in head.text(certain, place, texts[place].thought):
                        yield block
            case Ended(SpecrejError() as error):
                yield head.failure(refusal_of(error, {}))
                return
            case Ended(Result() as result, is_late, place):
                completion, sent = await finish(result, is_late, place), texts[place].sent
                if not _text_of(completion["choices"][0]).startswith(sent):
                    raise RuntimeError("what was streamed is not how the answer begins")
                bodies[place] = completion
                whole = None
                if len(bodies) == len(echoes):
                    whole = united([bodies[number] for number in sorted(bodies)])
                # Made as a whole: an error is not to come behind an end.
                for block in list(head.end(completion, sent, whole)):
                    yield block


async def at_once(head: Writer, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """What is sent where the whole body is there before anything is sent."""
    for block in head.end(body, "", body):
        yield block


def comment(payload: Mapping[str, Any]) -> bytes:
    """Progress as every client skips it."""
    return f": progress {json.dumps(payload)}\n\n".encode()


def _payload(event: Queued | Started | Step | Decided, num_prompts: int) -> dict[str, Any]:
    """How one of several prompts stands says which it is."""
    payload = payload_of(event)
    if num_prompts > 1 and not isinstance(event, Queued):
        payload["prompt"] = event.prompt
    return payload


def _text_of(choice: Mapping[str, Any]) -> str:
    text: str = (choice["message"]["content"] or "") if "message" in choice else choice["text"]
    return text


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
