"""The tokens of an answer with their log-probabilities, as OpenAI's chat endpoint writes them.

    chat_logprobs(answer, request, engine.detokenizer)  # {"content": [...], "refusal": None}

Log-probabilities are in nats, under the model, before all that a request's settings do to them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from specrej.server.protocol import CompletionRequest
from specrej.types import Candidate, Continuation, Detokenizer, Prompt

Detokenizers = Callable[[Prompt], Detokenizer]
"""What reads an answer to a prompt: `Engine.detokenizer`."""


class _Place(NamedTuple):
    """A token of an answer, and the likeliest ones in its place, likeliest first."""

    text: str
    logprob: float
    likeliest: list[tuple[str, float]]


def _places(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> Iterator[_Place]:
    """Tokens whose texts make up the answer's text.

    A character that takes several tokens is the text of the last of them. The end token and those
    behind the answer's text are left out; of a token in which a stop string begins there is what
    comes before it.
    """
    reader, read = detokenizer(request.prompt), 0
    tops = answer.top_logprobs or [()] * len(answer.token_ids)
    # Some engines are told no log-probabilities.
    for token_id, logprob, top in zip(answer.token_ids, answer.logprobs, tops, strict=False):
        if read >= len(answer.text):
            return
        text = answer.text[read : read + len(reader.add(token_id).text)]
        read += len(text)
        yield _Place(text, logprob, [(alone(one, detokenizer), number) for one, number in top])


def alone(token_id: int, detokenizer: Detokenizers) -> str:
    """A token's text by itself, or how it is spelled if it is a special one; empty where it is a
    part of a character.
    """
    piece = detokenizer(Continuation(".")).add(token_id)
    return piece.text or piece.special


def chat_logprobs(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> dict[str, Any]:
    """Of an answer to /v1/chat/completions."""
    content = [
        {
            **_entry(place.text, place.logprob),
            "top_logprobs": [_entry(text, logprob) for text, logprob in place.likeliest],
        }
        for place in _places(answer, request, detokenizer)
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
