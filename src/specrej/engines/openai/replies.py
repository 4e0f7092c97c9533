"""What servers reply, read as functions of the reply: tokens of a completion, models, and the size
of a KV cache.

chunk = read_completion(text)        # vLLM's, SGLang's, llama.cpp's and OpenAI's own form
capacity = read_capacity(metrics)    # tokens, or None
"""

import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from specrej.types import TopLogprobs

End = Literal["stop", "length"]

_VLLM_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")
_SAMPLE = r"^{name}(?:\{{.*\}})? ([0-9.e+-]+)$"


class UnreadableReplyError(Exception):
    """A reply that is of no form we know; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A completion, as the server gave it.

    Attributes:
        text: of its tokens, without the one that ended it.
        ids: its tokens; None where the server gives none.
        logprobs: one a token, None for those that the server says nothing of.
        end: why it ended there.
        matched: id of the token that ended it, where the server names it.
        num_tokens: completion tokens, as the server counts them.
        num_read, num_cached: tokens of the prompt, and how many of them a cache held; None where it
            is not said.
        top_logprobs: for each of `logprobs` the likeliest tokens in its place, likeliest first;
            empty where the server names none by id.
    """

    text: str
    ids: list[int] | None
    logprobs: list[float | None]
    end: End
    matched: int | None
    num_tokens: int | None
    num_read: int | None
    num_cached: int | None
    top_logprobs: list[TopLogprobs] = field(default_factory=list)


class Capacity(NamedTuple):
    """A server's KV cache."""

    tokens: int
    """That it holds, of all requests."""
    page: int
    """Tokens of its pages."""
    used: float
    """Share of it that is in use now."""


def read_completion(text: str) -> Chunk:
    """The first choice of a completion.

    Raises:
        UnreadableReplyError: it has none.
    """
    reply = _as_object(text)
    match reply:
        case {
            "choices": [
                {"text": str() as made, "finish_reason": ("stop" | "length") as end} as choice,
                *_,
            ]
        }:
            pass
        case {"choices": [{"finish_reason": reason, "text": _}, *_]}:
            raise UnreadableReplyError(f"it ended for the reason {json.dumps(reason)}")
        case _:
            raise UnreadableReplyError("no completion is in the reply")
    usage: dict[str, Any] = given if isinstance(given := reply.get("usage"), dict) else {}
    num_tokens = _count(usage.get("completion_tokens"))
    ids, logprobs = _tokens(choice, num_tokens)
    return Chunk(
        text=made.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        ),  # half a character is none
        ids=ids,
        logprobs=logprobs,
        top_logprobs=_top_logprobs(choice, len(logprobs)),
        end=end,
        matched=next(
            (_count(choice[key]) for key in ("stop_reason", "matched_stop") if key in choice), None
        ),
        num_tokens=num_tokens,
        num_read=_count(usage.get("prompt_tokens")),
        num_cached=_cached(reply, usage),
    )


def _tokens(
    choice: dict[str, Any], num_tokens: int | None
) -> tuple[list[int] | None, list[float | None]]:
    """Ids and log-probabilities; the ids may stand in the entries of the latter (llama.cpp)."""
    match choice.get("logprobs"):
        case {"content": [*entries]}:
            pass
        case {"token_logprobs": [*numbers]}:
            entries = [{"logprob": number} for number in numbers]
        case _:
            entries = []
    known = [entry for entry in entries if isinstance(entry, dict)]
    logprobs = [_logprob(entry.get("logprob")) for entry in known]
    match choice.get("token_ids"):
        case [*given]:
            ids = [_id(one) for one in given]
        case _ if known and num_tokens == len(known) and all("id" in entry for entry in known):
            # llama.cpp has no entry for a token that ends within a character: then there are fewer.
            ids = [_id(entry["id"]) for entry in known]
        case _:
            return None, logprobs
    return ids, logprobs


def _top_logprobs(choice: dict[str, Any], num_tokens: int) -> list[TopLogprobs]:
    """One a token that has a log-probability, by ids as vLLM ("token_id:7") or llama.cpp write
    them; empty where there are none.
    """
    match choice.get("logprobs"):
        case {"content": [*entries]}:
            given = [entry.get("top_logprobs") for entry in entries if isinstance(entry, dict)]
        case {"top_logprobs": [*given]}:
            pass
        case _:
            given = []
    found = [_likeliest(one) for one in given]
    return found if any(found) and len(found) == num_tokens else []


def _likeliest(given: Any) -> TopLogprobs:
    pairs: list[tuple[Any, Any]] = []
    match given:
        case {}:
            named = [(_TOKEN_ID.fullmatch(name), number) for name, number in given.items()]
            pairs = [(int(name[1]), number) for name, number in named if name]
        case [*entries]:
            pairs = [
                (one.get("id"), one.get("logprob")) for one in entries if isinstance(one, dict)
            ]
    known = [(_count(one), _logprob(number)) for one, number in pairs]
    sound = [(one, number) for one, number in known if one is not None and number is not None]
    return tuple(sorted(sound, key=lambda pair: -pair[1]))


def _id(given: Any) -> int:
    if (one := _count(given)) is None:
        raise UnreadableReplyError(f"{json.dumps(given)} is no token id")
    return one


def _logprob(given: Any) -> float | None:
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    # A whole number may be beyond every float.
    return float(given) if is_number and abs(given) <= sys.float_info.max else None


def _cached(reply: dict[str, Any], usage: dict[str, Any]) -> int | None:
    """Tokens of the prompt that a cache held: OpenAI's, vLLM's and SGLang's place for it, or
    llama.cpp's.
    """
    match (usage.get("prompt_tokens_details"), reply.get("timings")):
        case ({"cached_tokens": number}, _) | (_, {"cache_n": number}):
            return _count(number)
    return None


def read_models(text: str) -> list[dict[str, Any]]:
    """What a server lists as its models; empty where it lists none.

    Raises:
        UnreadableReplyError: it is no list of models.
    """
    match _as_object(text):
        case {"data": [*models]}:
            return [
                model
                for model in models
                if isinstance(model, dict) and isinstance(model.get("id"), str)
            ]
    raise UnreadableReplyError("it is no list of models")


def read_capacity(metrics: str) -> Capacity | None:
    """The KV cache of vLLM or SGLang, from their Prometheus metrics; of several engines of vLLM
    the sum.
    """
    caches = [
        dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in _VLLM_CACHE.findall(metrics)
    ]
    pages = [
        (int(cache["num_gpu_blocks"]), int(cache["block_size"]))
        for cache in caches
        if cache.get("num_gpu_blocks", "").isdecimal() and cache.get("block_size", "").isdecimal()
    ]
    if pages:
        tokens, page = sum(number * size for number, size in pages), pages[0][1]
        return Capacity(tokens, page, _mean(_samples(metrics, "vllm:kv_cache_usage_perc")))
    sizes = _samples(metrics, "sglang:max_total_num_tokens")
    if sizes:
        (size, *_) = _samples(metrics, "sglang:page_size") or [1.0]
        # One sample a rank: ranks that share a model would be counted twice in a sum.
        return Capacity(
            int(max(sizes)), max(int(size), 1), _mean(_samples(metrics, "sglang:token_usage"))
        )
    return None


def _samples(metrics: str, name: str) -> list[float]:
    return [
        float(number) for number in re.findall(_SAMPLE.format(name=name), metrics, re.MULTILINE)
    ]


def _mean(numbers: list[float]) -> float:
    return min(max(sum(numbers) / len(numbers), 0.0), 1.0) if numbers else 0.0


def _count(given: Any) -> int | None:
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else None


def _as_object(text: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict):
        return reply
    raise UnreadableReplyError("it is no JSON object")
