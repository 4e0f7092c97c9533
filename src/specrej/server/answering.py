"""OpenAI's bodies that answer: a result as a chat.completion or a text_completion.

    made = {"completion_id": "c-1", "created": 0, "model": "smollm2"}
    answer = to_body(asked, result, **made, detokenizer=engine.detokenizer)

What was asked is from `protocol`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from specrej.hub.thinking import Thinking
from specrej.options import options_of
from specrej.search.choosing import ranked
from specrej.server.calling import with_calls
from specrej.server.legacy_logprobs import answer_entries, legacy_logprobs
from specrej.server.protocol import CompletionRequest
from specrej.server.reasoning import num_thought_tokens, thinking_in, without_thought
from specrej.server.tokens import Detokenizers, chat_logprobs
from specrej.settings import Settings
from specrej.types import Candidate, Conversation, Result

_OWN_SETTINGS = options_of(Settings).keys() | {"memory_bytes", "note", "has_relative_rewards"}
_OF_ENGINE = ("engine", "device", "weights", "fused", "special_tokens", "checked")
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def best_answers(result: Result, num_answers: int) -> list[Candidate]:
    """`result.best`, then the best of the other complete candidates that were not rejected.

    There may be fewer than asked for: Speculative Rejection finishes few of those it began. Of an
    interrupted run in which none is complete, `result.best` alone.
    """
    others = [one for one in ranked(result.candidates) if one is not result.best]
    complete = [one for one in others if one.state == "complete"]
    return [result.best, *complete][:num_answers]


def to_body(
    request: CompletionRequest,
    result: Result,
    *,
    completion_id: str,
    created: int,
    model: str,
    detokenizer: Detokenizers,
) -> dict[str, Any]:
    """The chat.completion or text_completion that answers a request; for a response the former,
    which `responding` makes one of.

    Args:
        request: what was asked.
        result: its result.
        completion_id: the body's `id`.
        created: seconds since 1970.
        model: what answered.
        detokenizer: of the engine that made the result; used for log-probabilities alone.

    Returns:
        JSON's types. `choices` are the answers, best first: as many as asked for, or, where fewer
        candidates came to their end unrejected, as many as those; `specrej.num_answers` says how
        many. `usage` counts the tokens of the answers returned, and in chats with a model that has
        marks for thoughts how many of them were thought; what all candidates took is under
        `specrej`.
    """
    answers = best_answers(result, request.num_answers)
    thinking = thinking_in(request, detokenizer(request.prompt))
    choices = _choices(request, answers, detokenizer, completion_id, thinking)
    return {
        "id": completion_id,
        "object": "text_completion" if request.kind == "text" else "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": _usage(request, result.usage.prompt_tokens, answers, detokenizer, thinking),
        "specrej": _own_part(result, answers, request.returned, model),
    }


def _usage(
    request: CompletionRequest,
    num_prompt: int,
    answers: Sequence[Candidate],
    detokenizer: Detokenizers,
    thinking: Thinking | None,
) -> dict[str, Any]:
    num_completion = sum(len(answer.token_ids) for answer in answers)
    usage: dict[str, Any] = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
    if thinking is not None:
        numbers = [
            num_thought_tokens(answer, thinking, detokenizer(request.prompt)) for answer in answers
        ]
        usage["completion_tokens_details"] = {"reasoning_tokens": sum(numbers)}
    return usage


def _choices(
    request: CompletionRequest,
    answers: Sequence[Candidate],
    detokenizer: Detokenizers,
    completion_id: str,
    thinking: Thinking | None,
) -> list[dict[str, Any]]:
    is_text = request.kind == "text"
    to_choice, to_logprobs = (
        (_text_choice, _text_logprobs) if is_text else (_chat_choice, chat_logprobs)
    )
    choices = [
        {
            "index": position,
            **to_choice(answer),
            "finish_reason": _FINISH[answer.finish_reason or "length"],
            "logprobs": to_logprobs(answer, request, detokenizer) if request.has_logprobs else None,
        }
        for position, answer in enumerate(answers)
    ]
    if isinstance(request.prompt, Conversation):
        choices = [
            with_calls(choice, request, answer, detokenizer(request.prompt), completion_id)
            for choice, answer in zip(choices, answers, strict=True)
        ]
    if thinking is not None:
        choices = [without_thought(choice, thinking) for choice in choices]
    return choices


def _chat_choice(answer: Candidate) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": answer.text, "refusal": None}}


def _text_choice(answer: Candidate) -> dict[str, Any]:
    return {"text": answer.text}


def _text_logprobs(
    answer: Candidate, request: CompletionRequest, detokenizer: Detokenizers
) -> dict[str, Any]:
    return legacy_logprobs(answer_entries(answer, request, detokenizer))


def _own_part(
    result: Result, answers: Sequence[Candidate], returned: Sequence[str], model: str
) -> dict[str, Any]:
    """What the answers are worth, what all candidates took, and what `return` asked for."""
    usage = result.usage
    part: dict[str, Any] = {
        "rewards": [answer.reward for answer in answers],
        "num_answers": len(answers),
        "num_candidates": len(result.candidates),
        "generated_tokens": usage.generated_tokens,
        "reward_tokens": usage.reward_tokens,
        "seconds": usage.total_s,
        "peak_kv_bytes": usage.peak_kv_bytes,
        "seed": result.seed,
    }
    if result.note is not None:
        part["note"] = result.note
    if result.is_relative:
        part["is_relative"] = True
    if "rewards" in returned:
        part["candidate_rewards"] = [candidate.reward for candidate in result.candidates]
    if "decisions" in returned:
        part["decisions"] = [asdict(decision) for decision in result.decisions]
    if "candidates" in returned:
        part["candidates"] = [candidate.to_dict() for candidate in result.candidates]
    if "run" in returned:
        part["run"] = {
            "best": result.best.index,
            "votes": result.votes,
            "usage": usage.to_dict(),
            "settings": _public(result.settings, model),
            "versions": dict(result.versions),
        }
    return part


def _public(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Settings without what is nobody's business: where the model is, what is behind the reward."""
    known = {name: settings[name] for name in settings if name in {*_OWN_SETTINGS, *_OF_ENGINE}}
    return {**known, "model": model, "reward": str(settings["reward"]).partition(":")[0]}
