"""Where a request for a completion is taken: it is read (`asked`), seen to fit, submitted, and
followed until it has ended or its client has gone.

    desk = Desk(service, meters, "smollm2", Settings(), Limits(), None, logs_prompts=False)
    response = await desk.answer(request)
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from specrej.errors import DeadlineError, ServingError, SpecrejError, UsageError
from specrej.search.events import Ended, Text
from specrej.server.asked import Asked, Limits, parse_json, read_request
from specrej.server.calling import form_of
from specrej.server.connection import EventStream, body_of, unless_gone
from specrej.server.echoing import Echo, answer_to, echo_alone, read_echoes, united
from specrej.server.fitting import Fitted, check_model, fit
from specrej.server.guard import Entry
from specrej.server.lanes import Lane, Lanes
from specrej.server.logs import log_failure
from specrej.server.metrics import Meters
from specrej.server.reasoning import thinking_in
from specrej.server.refusals import RefusalError, internal_error, refusal_of, refusal_of_body
from specrej.server.responding import ResponseWriter
from specrej.server.service import Service
from specrej.server.streaming import Head, Writer, at_once, blocks
from specrej.server.tickets import StreamEvent, Ticket, ended_of, told
from specrej.settings import Settings
from specrej.types import Prompt, Result

_WRITERS: dict[str, tuple[str, Callable[..., Writer]]] = {
    "chat": ("chatcmpl-", Head),
    "text": ("cmpl-", Head),
    "response": ("resp_", ResponseWriter),
}
"""What ids of answers begin with, and what writes them."""


class Desk:
    """Takes requests for completions and answers them."""

    def __init__(
        self,
        service: Service,
        meters: Meters,
        model: str,
        defaults: Settings,
        limits: Limits,
        seed: int | None,
        lanes: Lanes,
        *,
        logs_prompts: bool,
    ) -> None:
        self._service = service
        self._meters = meters
        self._model = model
        self._defaults = defaults
        self._limits = limits
        self._seed = seed
        self._logs_prompts = logs_prompts
        self._lanes = lanes

    async def answer(self, request: Request) -> Response:
        """The response to a request for a completion.

        Raises:
            RefusalError: it gets none.
        """
        entry: Entry = request.scope["entry"]
        names, asked, prompts = await self._read(request, entry)
        echoes = await unless_gone(request.receive, self._echoes(asked, prompts, names, entry))
        named, writer = _WRITERS[asked.request.kind]
        head = writer(
            asked=asked,
            id=named + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model,
        )
        if not asked.request.decodes:
            return self._echoed(head, echoes)
        tickets = self._submit(asked, entry)

        def cancel() -> None:
            for ticket in tickets:
                ticket.cancel()

        async def finish(result: Result, is_late: bool, place: int) -> dict[str, Any]:
            return await self._body(head, entry, result, is_late, place, echoes[place])

        def note(error: Exception) -> None:
            entry.fields["error"] = internal_error().code
            log_failure(error, entry.request_id)

        if asked.is_streamed:
            reader = self._service.engine.detokenizer(asked.request.prompt)
            form = form_of(asked.request, reader)
            return EventStream(
                blocks(
                    self._noted(tickets, entry),
                    head,
                    finish,
                    note,
                    form,
                    [echo.text for echo in echoes],
                    thinking_in(asked.request, reader),
                ),
                at_end=cancel,
            )
        try:
            ended = await unless_gone(request.receive, ended_of(tickets))
        finally:
            cancel()
        bodies = []
        for one in ended:
            self._note_ended(entry, one)
            if isinstance(one.outcome, SpecrejError):
                raise refusal_of(one.outcome, names)
            bodies.append(await finish(one.outcome, one.is_late, one.prompt))
        return JSONResponse(head.whole(united(bodies)))

    async def _echoes(
        self, asked: Asked, prompts: Sequence[Fitted], names: Mapping[str, Any], entry: Entry
    ) -> list[Echo]:
        """What the answers to each prompt begin with.

        Raises:
            RefusalError: the prompts could not be read.
        """
        try:
            async with asyncio.timeout(asked.deadline_s - entry.seconds):
                echoes = await read_echoes(self._service, asked.request, prompts)
        except TimeoutError:
            raise _late(entry) from None
        except SpecrejError as error:
            self._note_ended(entry, Ended(error))
            raise refusal_of(error, names) from error
        if echoes[0].logprobs is not None:
            self._meters.count_reading(sum(echo.num_tokens for echo in echoes))
        return echoes

    def _echoed(self, head: Writer, echoes: Sequence[Echo]) -> Response:
        """The response to a request that nothing is decoded for."""
        made = {"id": head.id, "created": head.created, "model": head.model}
        request = head.asked.request
        body = united([echo_alone(request, at, echo, **made) for at, echo in enumerate(echoes)])
        if not head.asked.is_streamed:
            return JSONResponse(body)
        return EventStream(at_once(head, body), at_end=lambda: None)

    async def _read(
        self, request: Request, entry: Entry
    ) -> tuple[Mapping[str, Any], Asked, Sequence[Fitted]]:
        """A body without its texts, what it asks for, and its prompts, which fit.

        Raises:
            RefusalError: it cannot be honoured, or there is no room or no time to see whether it
                can.
            ClientGoneError: the client has gone.
        """
        async with body_of(request, self._lanes, self._limits.body_bytes) as (lane, raw):
            return await unless_gone(
                request.receive, self._understand(lane, raw, request.url.path, entry)
            )

    async def _understand(
        self, lane: Lane, raw: bytes, path: str, entry: Entry
    ) -> tuple[Mapping[str, Any], Asked, Sequence[Fitted]]:
        num_bytes, body = len(raw), dict[str, Any]()

        def parse() -> Asked:
            body.update(parse_json(raw))
            seed = secrets.randbelow(2**32) if self._seed is None else self._seed
            return read_request(path, body, replace(self._defaults, seed=seed), self._limits)

        try:
            asked = await lane.parsing.do(num_bytes, parse)
            self._note_asked(entry, asked)
            async with asyncio.timeout(asked.deadline_s - entry.seconds):
                prompts = await lane.tokenizing.do(num_bytes, lambda: self._fit(asked))
        except UsageError as error:
            raise refusal_of_body(error, body) from error
        except TimeoutError:
            raise _late(entry) from None
        names = {name: value if name == "specrej" else None for name, value in body.items()}
        return names, asked, prompts

    def _fit(self, asked: Asked) -> list[Fitted]:
        """See that the prompts fit, while the client can still be told by a status."""
        check_model(asked.request.model, self._model)
        return fit(self._service, asked.request, self._limits.prompt_tokens)

    def _submit(self, asked: Asked, entry: Entry) -> list[Ticket]:
        """A ticket for each prompt; of one that is not taken, for none."""
        deadline_s = asked.deadline_s - entry.seconds
        if deadline_s <= 0:
            raise _late(entry)
        tickets: list[Ticket] = []
        try:
            for place, prompt in enumerate(asked.request.prompts):
                ticket = self._service.submit(
                    prompt,
                    asked.request.settings,
                    deadline_s=deadline_s,
                    is_watched=asked.is_streamed,
                    place=place,
                )
                tickets.append(ticket)
        except ServingError as error:
            for ticket in tickets:
                ticket.cancel()
            raise refusal_of(error, {}) from error
        return tickets

    async def _noted(self, tickets: Sequence[Ticket], entry: Entry) -> AsyncIterator[StreamEvent]:
        """The events of a stream; its first text and its end are noted."""
        has_text = False
        async for event in told(tickets):
            if isinstance(event, Ended):
                self._note_ended(entry, event)
            is_text = isinstance(event, Text) or (
                isinstance(event, Ended) and isinstance(event.outcome, Result)
            )
            if is_text and not has_text:
                has_text = True
                self._meters.count_first_text(entry.seconds)
            yield event

    async def _body(
        self, head: Writer, entry: Entry, result: Result, is_late: bool, place: int, echo: Echo
    ) -> dict[str, Any]:
        """The body of an answer to one prompt; made aside, since log-probabilities of a long one
        take their time.
        """
        body = await asyncio.to_thread(
            answer_to,
            head.asked.request,
            result,
            place,
            echo,
            completion_id=head.id,
            created=head.created,
            model=head.model,
            detokenizer=self._service.engine.detokenizer,
        )
        body["specrej"]["is_late"] = is_late
        num_answer = body["usage"]["completion_tokens"]
        self._meters.count_answer(result, num_answer, is_late=is_late)
        counts = {
            "prompt_tokens": result.usage.prompt_tokens,
            "answer_tokens": num_answer,
            "generated_tokens": result.usage.generated_tokens,
            "num_candidates": len(result.candidates),
        }
        entry.fields |= {
            name: entry.fields.get(name, 0) + number for name, number in counts.items()
        }
        entry.fields["is_late"] = is_late or entry.fields.get("is_late", False)
        if self._logs_prompts:
            several = [*entry.fields.get("answer", []), result.text]
            entry.fields["answer"] = several if head.asked.request.others else result.text
        return body

    def _note_asked(self, entry: Entry, asked: Asked) -> None:
        settings = asked.request.settings
        entry.fields |= {
            "is_streamed": asked.is_streamed,
            "algorithm": settings.algorithm,
            "seed": settings.seed,
        }
        if self._logs_prompts:
            several = [_loggable(one) for one in asked.request.prompts]
            entry.fields["prompt"] = several if asked.request.others else several[0]

    def _note_ended(self, entry: Entry, ended: Ended) -> None:
        if isinstance(ended.outcome, SpecrejError):
            entry.note_failure(ended.outcome)


def _late(entry: Entry) -> RefusalError:
    """The deadline came while a request was being read."""
    message = f"no candidate was complete after {entry.seconds:.1f} s, all spent before the queue"
    return refusal_of(
        DeadlineError(message, hint="send the request again, or give it more time"), {}
    )


def _loggable(prompt: Prompt) -> Any:
    """A prompt as the log has it: its token ids, its text, or its messages."""
    if isinstance(prompt, str):
        return getattr(prompt, "token_ids", ()) or prompt
    return [*prompt]
