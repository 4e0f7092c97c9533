"""Rewards of answers that a request gives: /v1/score, by our names and by vLLM's.

    asked = parse_score({"model": "m", "prompt": "Why?", "answers": ["So."]}, most_answers=1024)
    desk = ScoreDesk(service, meters, "m", Limits(), lanes)

`given` has them scored.
"""

import asyncio
import math
import reprlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from specrej.errors import DeadlineError, PromptError, UsageError
from specrej.files.reading import check_characters
from specrej.messages import as_messages, prompt_bytes
from specrej.server.asked import Limits, parse_json
from specrej.server.connection import body_of, unless_gone
from specrej.server.fitting import check_bytes, check_model
from specrej.server.given import GivenRewards
from specrej.server.guard import Entry
from specrej.server.lanes import Lane, Lanes
from specrej.server.metrics import Meters
from specrej.server.refusals import refusal_of_body
from specrej.server.service import Service

FORMS = (("messages", "answers"), ("prompt", "answers"), ("text_1", "text_2"))
"""What a body calls the prompt and the answers: ours, ours with a text, and vLLM's."""
_LABELS = ("user",)


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedScores:
    """What a body asks for.

    Attributes:
        model: as the body names it.
        messages: the prompt.
        answers: to it, one at least.
    """

    model: str
    messages: list[dict[str, str]]
    answers: list[str]


def parse_score(body: Mapping[str, Any], most_answers: int) -> AskedScores:
    """What a body for /v1/score asks for.

    Raises:
        UsageError: a field that cannot be honoured, or is none; names it.
        PromptError: no prompt, or one that is no text or conversation.
    """
    check_characters(body, "")
    given = {
        name: value for name, value in body.items() if value is not None and name not in _LABELS
    }
    names = sorted({"model", *(name for form in FORMS for name in form)})
    for name, value in given.items():
        if name not in names:
            raise UsageError(
                f"{name} cannot be honoured, got {reprlib.repr(value)}",
                hint=f"leave it out; honoured are {', '.join(names)}",
            )
    form = next((form for form in FORMS if {*form, "model"} == {*given, "model"}), None)
    if form is None:
        raise UsageError(
            f"the body must have a prompt and answers, got {', '.join(sorted(given)) or 'nothing'}",
            hint="give messages or prompt, with answers; or text_1 with text_2",
        )
    model, prompt, answers = given.get("model"), given[form[0]], given[form[1]]
    if not isinstance(model, str) or not model:
        raise UsageError(f"model must be a text, got {reprlib.repr(model)}")
    expected = list if form[0] == "messages" else str
    if not isinstance(prompt, expected):
        raise PromptError(
            f"{form[0]} must be a {'list of messages' if expected is list else 'text'}, got "
            f"{reprlib.repr(prompt)}",
            hint="several prompts are several requests",
        )
    return AskedScores(
        model=model,
        messages=as_messages(prompt),
        answers=_answers(form[1], answers, most_answers),
    )


def _answers(name: str, given: object, most: int) -> list[str]:
    answers = [given] if name == "text_2" and isinstance(given, str) else given
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UsageError(f"{name} must be a list of texts, got {reprlib.repr(given)}")
    if not 1 <= len(answers) <= most:
        raise UsageError(f"{name} must be 1 to {most} texts on this server, got {len(answers)}")
    return answers


class ScoreDesk:
    """Takes requests for rewards and answers them.

    Args:
        service: has them scored.
        meters: counts.
        model: what requests call the model.
        limits: the most that a request may ask for.
        lanes: what is done for bodies.
    """

    def __init__(
        self, service: Service, meters: Meters, model: str, limits: Limits, lanes: Lanes
    ) -> None:
        self._service = service
        self._meters = meters
        self._model = model
        self._limits = limits
        self._lanes = lanes

    async def answer(self, request: Request) -> Response:
        """The response to a request for rewards.

        Raises:
            RefusalError: the body cannot be honoured.
            SpecrejError: the reward failed, or there was no room or time for it.
        """
        entry: Entry = request.scope["entry"]
        async with body_of(request, self._lanes, self._limits.body_bytes) as (lane, raw):
            asked = await unless_gone(request.receive, self._understand(lane, raw))
        judged = await unless_gone(request.receive, self._judge(asked, entry))
        self._meters.count_reward_tokens(judged.num_tokens)
        entry.fields |= {"num_answers": len(asked.answers), "reward_tokens": judged.num_tokens}
        return JSONResponse(self._body(judged))

    async def _understand(self, lane: Lane, raw: bytes) -> AskedScores:
        body = dict[str, Any]()

        def parse() -> AskedScores:
            body.update(parse_json(raw))
            asked = parse_score(body, self._limits.candidates)
            check_model(asked.model, self._model)
            engine, limits = self._service.engine, self._limits
            check_bytes("the prompt", prompt_bytes(asked.messages), engine, limits.prompt_tokens)
            for number, answer in enumerate(asked.answers):
                check_bytes(f"answers[{number}]", len(answer.encode()), engine, limits.new_tokens)
            return asked

        try:
            return await lane.parsing.do(len(raw), parse)
        except UsageError as error:
            raise refusal_of_body(error, body) from error

    async def _judge(self, asked: AskedScores, entry: Entry) -> GivenRewards:
        try:
            async with asyncio.timeout(self._limits.deadline_s - entry.seconds):
                return await asyncio.wrap_future(
                    self._service.given.submit(asked.messages, asked.answers)
                )
        except TimeoutError:
            raise DeadlineError(
                f"no rewards after {entry.seconds:.1f} s", hint="send fewer answers, or come later"
            ) from None

    def _body(self, judged: GivenRewards) -> dict[str, Any]:
        return {
            "id": f"score-{secrets.token_hex(12)}",
            "object": "list",
            "created": int(time.time()),
            "model": self._model,
            "data": [
                {
                    "index": index,
                    "object": "score",
                    "score": None if reward == -math.inf else reward,
                }
                for index, reward in enumerate(judged.rewards)
            ],
            "usage": {
                "prompt_tokens": judged.num_tokens,
                "total_tokens": judged.num_tokens,
                "reward_tokens": judged.num_tokens,
                "seconds": judged.seconds,
            },
        }
