"""The tokens of an answer with their log-probabilities, as OpenAI's chat endpoint writes them.

    chat_logprobs(answer, request, engine.detokenizer)  # {"content": [...], "refusal": None}

Log-probabilities are in nats, under the model, before all that a request's settings do to them.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from specrej.server.protocol import CompletionRequest
from specrej.types import Candidate, Continuation, Detokenizer, Prompt, TopLogprobs

Detokenizers = Callable[[Prompt], Detokenizer]
"""What reads an answer to a prompt: `Engine.detokenizer`."""


class AnswerToken(NamedTuple):
    """A token of an answer."""

    token_id: int
    text: str
    """What it adds to the answer's text; empty behind its end."""
    start: int
    """Where that begins, in characters."""
    logprob: float
    likeliest: TopLogprobs
    """Those in its place that were asked for, by id, likeliest first."""


def places(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> Iterator[AnswerToken]:
    """All tokens of an answer; their texts make up its text, as far as that goes.

    A character that takes several tokens is the text of the last of them. Of a token in which a
    stop string begins there is what comes before it.
    """
    reader, read = detokenizer(request.prompt), 0
    tops = answer.top_logprobs or [()] * len(answer.token_ids)
    # Some engines are told no log-probabilities.
    for token_id, logprob, top in zip(answer.token_ids, answer.logprobs, tops, strict=False):
        text = answer.text[read : read + len(reader.add(token_id).text)]
        # An algorithm may have asked for more.
        yield AnswerToken(token_id, text, read, logprob, top[: request.settings.top_logprobs])
        read += len(text)


def alone(token_id: int, detokenizer: Detokenizers) -> str:
    """A token's text by itself, or how it is spelled if it is a special one; empty where it is a
    part of a character.
    """
    piece = detokenizer(Continuation(".")).add(token_id)
    return piece.text or piece.special


def chat_logprobs(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> dict[str, Any]:
    """Of an answer to /v1/chat/completions. The end token and those behind the answer's text are
    left out.
    """
    content = [
        {
            **_entry(place.text, place.logprob),
            "top_logprobs": [
                _entry(alone(token_id, detokenizer), logprob)
                for token_id, logprob in place.likeliest
            ],
        }
        for place in takewhile(
            lambda place: place.start < len(answer.text), places(answer, request, detokenizer)
        )
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
