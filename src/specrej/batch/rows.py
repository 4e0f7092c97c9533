"""What comes out of a batch job: one row a request, in the form of the request.

    # {"id": "a", "text": ..., "reward": ..., "answers": [...], ...}
    row_of(request, result, engine.detokenizer)
    failure_of(request, error)  # {"id": "a", "text": None, ..., "error": {...}, "line": 1}
    row_id(row)                                    # "a", of either form

A row is a function of request and result: but for the seconds, a job that was resumed writes what
an uninterrupted one writes. That is why a completion's `created` is 0: no time of day would stay
the same.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from specrej.batch.requests import BrokenRequest, Request
from specrej.errors import SpecrejError
from specrej.search.choosing import lowest, rank
from specrej.server.answering import best_answers, to_body
from specrej.server.tokens import Detokenizers
from specrej.types import Candidate, Result


def row_of(request: Request, result: Result, detokenizer: Detokenizers) -> dict[str, Any]:
    """The row of a request that was answered, in JSON's types.

    A plain row's `answers` are the best `num_kept` complete candidates that were not rejected, best
    first, or as many as there are; with `top_logprobs` they hold their tokens' ids and
    log-probabilities. With num_kept above 1, `lowest` is the finished candidate of the
    lowest reward, rejected or not: the other half of a preference pair. It is None where only one
    candidate finished and was scored. `votes` is there where the result has them.

    Args:
        request: what was asked.
        result: its result.
        detokenizer: of the engine that made the result; for a completion with log-probabilities.
    """
    if request.completion is None:
        return _plain_row(request, result)
    number = _hash(request.id)
    prefix = "chatcmpl" if request.completion.kind == "chat" else "cmpl"
    body = to_body(
        request.completion,
        result,
        completion_id=f"{prefix}-{number}",
        created=0,
        model=result.settings["model"],
        detokenizer=detokenizer,
    )
    response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
    return {
        "id": f"batch_req_{number}",
        "custom_id": request.id,
        "response": response,
        "error": None,
    }


def failure_of(request: Request | BrokenRequest, error: SpecrejError) -> dict[str, Any]:
    """The row of a request that failed, or that could not be read (with its own error), in JSON's
    types.

    The error's name is that of its class, such as "prompt_error".
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    if request.form == "openai":
        message = f"{error}; {error.hint}" if error.hint else str(error)
        return {
            "id": f"batch_req_{_hash(request.id)}",
            "custom_id": request.id,
            "response": None,
            "error": {"code": name, "message": message},
        }
    return {
        "id": request.id,
        **(_prompt(request) if isinstance(request, Request) else {}),
        "text": None,
        "reward": None,
        "answers": [],
        "error": {"kind": name, "message": str(error), "hint": error.hint},
        "line": request.line,
    }


def with_wave(row: Mapping[str, Any], wave: Mapping[str, Any], num_kept: int) -> dict[str, Any]:
    """A plain row with what a later wave of candidates of its prompt has brought: the row of all
    of them.

    Args:
        row: of the candidates before.
        wave: the row of those that follow, which skipped them (`Request.num_skipped`).
        num_kept: answers that a row holds.
    """
    finished = sorted([*row["answers"], *wave["answers"]], key=_place)
    best = finished[0]
    merged = {**row, "text": best["text"], "reward": best["reward"], "answers": finished[:num_kept]}
    if num_kept > 1:
        lowest_ones = [each["lowest"] for each in (row, wave) if each["lowest"] is not None]
        worst = max([*finished, *lowest_ones], key=_place)
        merged["lowest"] = None if worst["index"] == best["index"] else worst
    return merged | {
        "usage": _usage_of_both(row["usage"], wave["usage"]),
        "num_candidates": wave["num_candidates"],
        "num_decisions": row["num_decisions"] + wave["num_decisions"],
    }


def _place(answer: Mapping[str, Any]) -> tuple[bool, float, int]:
    return rank(answer["reward"], answer["index"])


def _usage_of_both(before: Mapping[str, Any], wave: Mapping[str, Any]) -> dict[str, Any]:
    """Sums, but that the prompt is read again, and that memory and what a reward keeps of it are
    no sums.
    """
    largest = {name: max(before[name], wave[name]) for name in ("peak_kv_bytes", "reward_kv_bytes")}
    same = {name: before[name] for name in ("prompt_tokens", "shared_prompt_tokens")}
    again = before["reread_tokens"] + wave["reread_tokens"] + wave["prompt_tokens"]
    others = before.keys() - largest.keys() - same.keys() - {"reread_tokens", "reward_reuse"}
    sums = {name: before[name] + wave[name] for name in before if name in others}
    return {**before, **largest, **sums, "reread_tokens": again}


def row_id(row: Mapping[str, Any]) -> str:
    """The id of the request that a row belongs to: its own, or OpenAI's `custom_id`."""
    given: str = row["custom_id"] if "custom_id" in row else row["id"]
    return given


def _plain_row(request: Request, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": request.id,
        **_prompt(request),
        "text": result.text,
        "reward": result.reward,
        "answers": [_answer(candidate) for candidate in best_answers(result, request.num_kept)],
    }
    if request.num_kept > 1:
        worst = lowest(result.candidates, result.decisions, is_relative=result.is_relative)
        row["lowest"] = worst and _answer(worst)
    if result.note is not None:
        row["note"] = result.note
    if result.is_relative:
        row["is_relative"] = True
    if result.votes is not None:
        row["votes"] = dict(result.votes)
    return row | {
        "usage": result.usage.to_dict(),
        "num_candidates": len(result.candidates),
        "num_decisions": len(result.decisions),
        "seed": result.seed,
        "memory_bytes": result.settings["memory_bytes"],
        "error": None,
    }


def _prompt(request: Request) -> dict[str, Any]:
    return {"prompt" if isinstance(request.prompt, str) else "messages": request.prompt}


def _answer(candidate: Candidate) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "text": candidate.text,
        "reward": candidate.reward,
        "num_tokens": len(candidate.token_ids),
        "finish_reason": candidate.finish_reason,
        "index": candidate.index,
    }
    if candidate.top_logprobs:
        answer |= {
            "token_ids": candidate.token_ids,
            "logprobs": candidate.logprobs,
            "top_logprobs": candidate.top_logprobs,
        }
    return answer


def _hash(request_id: str) -> str:
    """24 hexadecimal digits that the id decides."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:24]
