"""Benches without a model: rows that look like real ones, from a seed.

    methods = ("best_of_n:8", "speculative_rejection:0.5")
    info, rows = make_bench(num_prompts=20, methods=methods, num_failures=1)
    write_bench(directory, info, rows)

Lengths are log-normal, a partial reward is the final one with noise that shrinks as the answer
grows, and memory dictates the decisions: a batch of twice the size meets its decision at half the
length.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.rows import BenchRow, CandidateRow, DecisionRow, RunInfo, TurnRow, UsageRow
from specrej.flops import FlopsRow
from specrej.types import Cause

METHODS = (
    "best_of_n:4",
    "best_of_n:16",
    "best_of_n:64",
    "speculative_rejection:0.2",
    "speculative_rejection:0.5",
)
Floats = NDArray[np.float64]
MAX_NEW_TOKENS = 128
SLOTS = 1024  # tokens that memory holds
TOKEN_BYTES = 5760
WORDS = (
    "the",
    "a",
    "good",
    "plan",
    "begins",
    "with",
    "water",
    "sleep",
    "light",
    "and",
    "grows",
    "by",
    "habit",
    "not",
)


def make_bench(
    *,
    num_prompts: int = 12,
    methods: Sequence[str] = METHODS,
    num_failures: int = 1,
    num_turns: int = 1,
    seed: int = 0,
) -> tuple[RunInfo, list[BenchRow]]:
    """A run and its rows. The failures fall on the last prompts, one a method in turn."""
    rows = []
    for number in range(num_prompts):
        for place in range(len(methods)):
            method = methods[(place + number) % len(methods)]
            has_failed = (
                number >= num_prompts - num_failures and method == methods[number % len(methods)]
            )
            rows.append(_row(number, method, place, num_turns, has_failed, seed))
    info: RunInfo = {
        "kind": "bench",
        "created": "2026-01-02T03:04:05+00:00",
        "prompts": {"source": "prompts.jsonl", "sha256": "5eed" * 16, "num_prompts": num_prompts},
        "methods": list(methods),
        "settings": {"reward": "noise", "seed": seed, "max_new_tokens": MAX_NEW_TOKENS},
        "engine": {"engine": "none", "model": "synthetic"},
        "versions": {"specrej": "0", "python": "3"},
    }
    return info, rows


def write_bench(directory: Path, info: RunInfo, rows: Sequence[BenchRow]) -> None:
    """The folder that `specrej bench` would leave."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(info))
    (directory / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _row(
    number: int, method: str, place: int, num_turns: int, has_failed: bool, seed: int
) -> BenchRow:
    turns = [
        make_turn(number, method, turn, seed) for turn in range(0 if has_failed else num_turns)
    ]
    return {
        "prompt_id": f"p{number:03}",
        "category": ("writing", "facts")[number % 2],
        "method": method,
        "place": place,
        "turns": turns,
        "error": {"kind": "BudgetError", "message": "the budget holds no candidate"}
        if has_failed
        else None,
    }


def make_turn(number: int, method: str, turn: int, seed: int) -> TurnRow:
    """One question: a candidate's fate depends on (seed, prompt, turn, candidate) alone, as in a
    real run."""
    name, _, word = method.partition(":")
    alpha = float(word) if name == "speculative_rejection" else 0.0
    count = int(word) if name == "best_of_n" else SLOTS // 16
    rng = np.random.default_rng((seed, number, turn))
    mean, spread = rng.normal(4, 1.5), rng.uniform(0.6, 1.6)
    noise = np.random.default_rng((seed, number, turn, 1)).normal(size=(4096, 3))
    lengths = (
        np.minimum(np.exp(noise[:, 0] * 0.5 + math.log(70)), MAX_NEW_TOKENS).astype(int).clip(2)
    )
    finals = mean + spread * noise[:, 1]
    candidates = [_candidate(index, int(lengths[index])) for index in range(count)]
    decisions = _run(candidates, alpha, finals, noise[:, 2] * spread)
    complete = [candidate for candidate in candidates if candidate["state"] == "complete"]
    best = max(complete, key=lambda candidate: last_reward(candidate))
    worst = min(complete, key=lambda candidate: last_reward(candidate))
    usage = _usage(candidates, decisions)
    return {
        "messages": [{"role": "user", "content": f"Question {number}.{turn}: how does one begin?"}],
        "text": text_of(number, best["index"], best["num_tokens"]),
        "reward": last_reward(best),
        "perplexity": best["perplexity"],
        "lowest_text": text_of(number, worst["index"], worst["num_tokens"]),
        "lowest_reward": last_reward(worst),
        "candidates": candidates,
        "decisions": decisions,
        "usage": usage,
        "flops": _flops(usage),
        "memory_bytes": SLOTS * TOKEN_BYTES,
    }


def _candidate(index: int, num_tokens: int) -> CandidateRow:
    return {
        "index": index,
        "num_tokens": num_tokens,
        "state": "complete",
        "finish_reason": "length" if num_tokens == MAX_NEW_TOKENS else "eos",
        "perplexity": 2.0 + (index * 37 % 100) / 50,
        "rewards": {},
    }


def _run(
    candidates: list[CandidateRow], alpha: float, finals: Floats, noise: Floats
) -> list[DecisionRow]:
    """Score and reject whenever the live ones have filled memory, and once more when all have
    ended."""
    decisions: list[DecisionRow] = []
    batch = candidates
    while True:
        last = decisions[-1]["num_tokens"] if decisions else 0
        live = sum(row["num_tokens"] > last for row in batch)
        length = (
            min(max(SLOTS // max(live, 1), last + 1), MAX_NEW_TOKENS) if alpha else MAX_NEW_TOKENS
        )
        length = min(max(row["num_tokens"] for row in batch), length)
        for row in batch:
            share = min(length / row["num_tokens"], 1)
            reward = finals[row["index"]] * share**0.2 + noise[row["index"]] * (1 - share)
            row["rewards"][str(len(decisions))] = round(float(reward), 4)
        is_last = all(row["num_tokens"] <= length for row in batch)
        cut = float(np.quantile([last_reward(row) for row in batch], alpha))
        rejected = [row for row in batch if last_reward(row) < cut] if alpha else []
        cause: Cause = "complete" if is_last else "budget"
        decisions.append(_decision(cause, length, batch, rejected, cut))
        for row in rejected:
            row["finish_reason"] = row["finish_reason"] if row["num_tokens"] <= length else None
            row["num_tokens"] = min(row["num_tokens"], length)
            row["state"] = "rejected"
        batch = [row for row in batch if row["state"] == "complete"]
        if is_last:
            return decisions


def _decision(
    cause: Cause, length: int, batch: list[CandidateRow], rejected: list[CandidateRow], cut: float
) -> DecisionRow:
    held = len(batch) * length * TOKEN_BYTES
    return {
        "cause": cause,
        "num_tokens": length,
        "scored": [row["index"] for row in batch],
        "rejected": [row["index"] for row in rejected],
        "cut": cut if rejected else None,
        "kv_bytes": held,
        "kv_bytes_after": held - len(rejected) * length * TOKEN_BYTES,
    }


def _usage(candidates: list[CandidateRow], decisions: list[DecisionRow]) -> UsageRow:
    generated = sum(row["num_tokens"] for row in candidates)
    read = sum(len(decision["scored"]) * (decision["num_tokens"] + 40) for decision in decisions)
    parts = {
        "prefill_s": 0.12,
        "decode_s": generated / 300,
        "reward_s": read / 4000,
        "other_s": generated / 40000,
    }
    return {
        "prompt_tokens": 40,
        "generated_tokens": generated,
        "reward_tokens": read,
        "prefill_s": parts["prefill_s"],
        "decode_s": parts["decode_s"],
        "reward_s": parts["reward_s"],
        "other_s": parts["other_s"],
        "total_s": sum(parts.values()),
        "peak_kv_bytes": max(decision["kv_bytes"] for decision in decisions),
        "num_steps": max(row["num_tokens"] for row in candidates),
    }


def _flops(usage: UsageRow) -> FlopsRow:
    each = 2.7e8
    return {
        "prefill": usage["prompt_tokens"] * each,
        "decode": usage["generated_tokens"] * each,
        "reward": usage["reward_tokens"] * each / 6,
    }


def last_reward(candidate: CandidateRow) -> float:
    return next(reversed(candidate["rewards"].values()))


def text_of(number: int, index: int, num_tokens: int) -> str:
    """Words that depend on the prompt and the candidate, as many as it has tokens."""
    words = np.random.default_rng((number, index)).choice(WORDS, num_tokens)
    return f"{' '.join(words).capitalize()}."
