"""The HTTP side of the server, over a `Service`: what takes and answers requests for completions,
and the application.

    app = make_app(service, model="smollm2", defaults=Settings(), keys=["secret"])
    uvicorn.run(app)

A request is read (`asked`), seen to fit, submitted, and followed until it has ended or its client
has gone. What every request goes through, keys and log among it, is in `guard`; the other endpoints
are in `endpoints`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from specrej.errors import DeadlineError, ServingError, SpecrejError, UsageError
from specrej.memory import format_bytes
from specrej.search.events import Ended, Text
from specrej.server import schema
from specrej.server.asked import READERS, Asked, Limits, parse_json, read_request
from specrej.server.calling import form_in
from specrej.server.connection import EventStream, body_of, unless_gone
from specrej.server.echoing import Echo, answer_to, echo_alone, read_echoes, united
from specrej.server.endpoints import add_answering, add_models, add_operations, add_pages, document
from specrej.server.fitting import Fitted, check_model, fit
from specrej.server.guard import LOOPBACK, Entry, Gate, Guard
from specrej.server.lanes import Lane, Lanes
from specrej.server.logs import log_failure
from specrej.server.metrics import Meters
from specrej.server.refusals import RefusalError, internal_error, refusal_of, refusal_of_body
from specrej.server.responding import ResponseWriter
from specrej.server.score import ScoreDesk
from specrej.server.service import Service
from specrej.server.streaming import Head, Writer, at_once, blocks
from specrej.server.tickets import StreamEvent, Ticket, ended_of, told
from specrej.settings import Settings
from specrej.types import Prompt, Result
from specrej.version import __version__

_WRITERS: dict[str, tuple[str, Callable[..., Writer]]] = {
    "chat": ("chatcmpl-", Head),
    "text": ("cmpl-", Head),
    "response": ("resp_", ResponseWriter),
}
"""What ids of answers begin with, and what writes them."""
_ABOUT = (
    "Many candidate answers are begun, a reward stops the weak ones early, and the best is the "
    "answer."
)


def make_app(
    service: Service,
    *,
    model: str,
    defaults: Settings,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    hosts: Collection[str] | None = LOOPBACK,
    seed: int | None = None,
    logs_prompts: bool = False,
) -> FastAPI:
    """The application.

    Args:
        service: answers requests; the caller starts and stops it.
        model: what requests call the model.
        defaults: what a request gets that says nothing; its seed does not count.
        limits: the most that a request may ask for.
        keys: API keys, of which a request to /v1 or /metrics needs one; none asks for none.
        hosts: names that the server may be asked by; None: any. Counts only without keys.
        seed: of requests that give none; None draws one for each.
        logs_prompts: whether prompts and answers are written to the log.

    Raises:
        UsageError: a key that cannot be one, or defaults beyond the limits or the memory.
    """
    limits = limits or Limits()
    limits.check(defaults)
    if (defaults.memory_bytes or 0) > service.total_bytes:
        raise UsageError(
            f"the {format_bytes(service.total_bytes)} that requests share does not hold one "
            "request with a memory of "
            f"{defaults.memory}",
            hint="give a total_memory of at least the memory of one request, or a smaller memory",
        )
    app = _without_endpoints()
    meters = Meters(service)
    lanes = Lanes(limits.body_bytes)
    desk = _Desk(service, meters, model, defaults, limits, seed, lanes, logs_prompts=logs_prompts)
    scores = ScoreDesk(service, meters, model, limits, lanes)
    for path in READERS:
        add_answering(app, path, desk.answer)
    add_answering(app, "/v1/score", scores.answer)
    own = {name: value for name, value in defaults.to_dict().items() if name != "seed"}
    serving = schema.Serving(reward=service.reward.name.partition(":")[0], defaults=own)
    add_models(app, schema.Model(id=model, created=int(time.time()), specrej=serving))
    add_operations(app, service, meters)
    add_pages(app)
    paths = {
        path for route in app.routes if (path := getattr(route, "path", "{")) and "{" not in path
    }
    app.add_middleware(Guard, gate=Gate(keys, None if keys else hosts), meters=meters, paths=paths)
    return app


def _without_endpoints() -> FastAPI:
    """An application that answers nothing yet: how it is described, and how it refuses."""
    app = FastAPI(
        title="specrej",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        # a redirect names the host as the client did, and comes before the path's own rules
        redirect_slashes=False,
    )
    app.exception_handler(RefusalError)(_refuse)
    app.exception_handler(SpecrejError)(_refuse_failure)
    app.exception_handler(HTTPException)(_refuse_path)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


class _Desk:
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
            form = form_in(self._service.engine.detokenizer(asked.request.prompt))
            return EventStream(
                blocks(
                    self._noted(tickets, entry),
                    head,
                    finish,
                    note,
                    form,
                    [echo.text for echo in echoes],
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


async def _refuse_failure(request: Request, error: Exception) -> Response:
    """What was taken, or nearly, and failed: whatever path it is, and whoever raised it."""
    failure = cast("SpecrejError", error)
    request.scope["entry"].note_failure(failure)
    return refusal_of(failure, {}).response()


def _loggable(prompt: Prompt) -> Any:
    """A prompt as the log has it: its token ids, its text, or its messages."""
    if isinstance(prompt, str):
        return getattr(prompt, "token_ids", ()) or prompt
    return [*prompt]


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = cast("RefusalError", error)
    request.scope["entry"].fields["error"] = refusal.code
    return refusal.response()


async def _refuse_path(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    raised = cast("HTTPException", error)
    what = f"{request.method} {request.url.path[:100]}"
    code = {404: "not_found", 405: "method_not_allowed"}[raised.status_code]
    return RefusalError(code, f"{what}: {raised.detail}", headers=raised.headers).response()
