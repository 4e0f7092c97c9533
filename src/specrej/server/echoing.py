"""Answers that begin with their prompt, and answers to several prompts in one body.

echoes = await read_echoes(service, request, prompts)
bodies = [answer_to(request, result, place, echoes[place], ...) for ...]
body = united(bodies)
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specrej.server.answering import to_body
from specrej.server.fitting import Fitted
from specrej.server.legacy_logprobs import joined, legacy_logprobs, prompt_entries
from specrej.server.protocol import CompletionRequest
from specrej.server.service import Service
from specrej.types import Result


class Echo(NamedTuple):
    """What the answers to one prompt begin with."""

    text: str = ""
    num_tokens: int = 0
    logprobs: Mapping[str, Any] | None = None
    """Of its tokens, where they are told."""


async def read_echoes(
    service: Service, request: CompletionRequest, prompts: Sequence[Fitted]
) -> list[Echo]:
    """What the answers to each prompt begin with. Prompts that nobody waits for are not read.

    Raises:
        SpecrejError: a prompt could not be read.
    """
    if not request.has_echo:
        return [Echo()] * len(prompts)
    if not request.has_logprobs:
        return [Echo(prompt.text, len(prompt.ids)) for prompt in prompts]
    futures = service.read([prompt.ids for prompt in prompts], request.settings.top_logprobs)
    try:
        read = await asyncio.gather(*futures)
    finally:
        for future in futures:
            future.cancel()

    def make() -> list[Echo]:
        return [
            Echo(
                prompt.text,
                len(prompt.ids),
                legacy_logprobs(prompt_entries(service.engine, *prompt, likelihoods)),
            )
            for prompt, likelihoods in zip(prompts, read, strict=True)
        ]

    return await asyncio.to_thread(make)  # names of many tokens take their time


def answer_to(
    request: CompletionRequest, result: Result, place: int, echo: Echo, **made: Any
) -> dict[str, Any]:
    """The body that answers the prompt with this place among several: its choices with their
    numbers among all, and behind the prompt's echo. For `made` see `to_body`.
    """
    body = to_body(request, result, **made)
    for choice in body["choices"]:
        choice["index"] += place * request.num_answers
        if echo.text:
            choice["text"] = echo.text + choice["text"]
        if echo.logprobs is not None:
            choice["logprobs"] = joined(echo.logprobs, choice["logprobs"], len(echo.text))
    return body


def united(bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body that answers all prompts: their choices, the sums of their usage, and what each of
    them cost as a list under `specrej`. Of one prompt it is that one's body.
    """
    first, *others = bodies
    if not others:
        return dict(first)
    usage = {name: sum(body["usage"][name] for body in bodies) for name in first["usage"]}
    return {
        **first,
        "choices": [choice for body in bodies for choice in body["choices"]],
        "usage": usage,
        "specrej": [body["specrej"] for body in bodies],
    }


def echo_alone(request: CompletionRequest, place: int, echo: Echo, **made: Any) -> dict[str, Any]:
    """The body for a prompt that nothing is decoded for; `made` is its id, created and model."""
    choice = {"text": echo.text, "finish_reason": "length", "logprobs": echo.logprobs}
    usage = {"prompt_tokens": echo.num_tokens, "completion_tokens": 0}
    nothing = ("num_answers", "num_candidates", "generated_tokens", "reward_tokens")
    own = {"rewards": [], **dict.fromkeys((*nothing, "peak_kv_bytes"), 0), "seconds": 0.0}
    return {
        "object": "text_completion",
        **made,
        "choices": [{"index": place, **choice}],
        "usage": {**usage, "total_tokens": echo.num_tokens},
        "specrej": {**own, "seed": request.settings.seed, "is_late": False},
    }
