"""Log-probabilities in the form of OpenAI's older endpoint, /v1/completions, for tokens of prompts
and of answers.

    prompt = legacy_logprobs(prompt_entries(engine, ids, text, likelihoods))
    prompt.keys()   # tokens, token_logprobs, top_logprobs, text_offset
    joined(prompt, legacy_logprobs(answer_entries(answer, request, detokenizer)), len(text))

There is an entry for every token, those included that add nothing to the text and the one that ends
an answer: clients count them to know which tokens are the prompt's.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from specrej.engines.base import Engine
from specrej.engines.reading import Likelihood, spell
from specrej.server.protocol import CompletionRequest
from specrej.server.tokens import Detokenizers, alone, places
from specrej.types import Candidate

TokenEntry = tuple[str, float | None, Mapping[str, float] | None]
"""A token's text, its log-probability in nats, and those of the likeliest in its place. None where
there is none: nothing comes before a prompt's first token."""


def legacy_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    """The body of `logprobs`; an offset is where a token's text begins, in characters."""
    offsets = accumulate((len(text) for text, _, _ in entries), initial=0)
    return {
        "tokens": [text for text, _, _ in entries],
        "token_logprobs": [logprob for _, logprob, _ in entries],
        "top_logprobs": [None if top is None else dict(top) for _, _, top in entries],
        "text_offset": list(offsets)[: len(entries)],
    }


def joined(
    first: Mapping[str, Sequence[Any]], second: Mapping[str, Sequence[Any]], start: int
) -> dict[str, Any]:
    """The body of `logprobs` for two texts one after the other, the second from this character
    on.
    """
    moved = {**second, "text_offset": [start + offset for offset in second["text_offset"]]}
    return {name: [*values, *moved[name]] for name, values in first.items()}


def prompt_entries(
    engine: Engine, ids: Sequence[int], text: str, likelihoods: Sequence[Likelihood]
) -> list[TokenEntry]:
    """Of a prompt's tokens. One that the text does not spell, such as the BOS that a tokenizer
    adds, has an empty text.
    """
    shown, read = list[str](), 0
    for word in spell(engine, ids):
        is_added = not text.startswith(word, read) and not shown
        shown.append("" if is_added else word)
        read += len(shown[-1])
    scored = (
        (word, one.logprob, _top(engine, one, word, token_id))
        for word, token_id, one in zip(shown[1:], ids[1:], likelihoods, strict=True)
    )
    return [(shown[0], None, None), *scored]


def answer_entries(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> list[TokenEntry]:
    """Of an answer's tokens; their texts make up the answer's text, as far as that goes. Of the
    likeliest tokens with one text there is the likelier; the token itself is always among them.
    """
    entries: list[TokenEntry] = []
    for token_id, text, _, logprob, likeliest in places(answer, request, detokenizer):
        top: dict[str, float] = {}
        for other, value in (*likeliest, (token_id, logprob)):
            name = text if other == token_id else alone(other, detokenizer)
            top[name] = max(value, top.get(name, value))
        entries.append((text, logprob, top))
    return entries


def _top(engine: Engine, one: Likelihood, text: str, token_id: int) -> dict[str, float]:
    """The likeliest tokens by their texts, the prompt's own among them. Of two with one text there
    is the likelier.
    """
    top: dict[str, float] = {}
    for other, logprob in one.top:
        top.setdefault(text if other == token_id else _name(engine, other), logprob)
    top.setdefault(text, one.logprob)
    return top


def _name(engine: Engine, token_id: int) -> str:
    """A token's text; of one that has none of its own, such as a part of a character, its id."""
    return spell(engine, [token_id])[0] or f"token_id:{token_id}"
