"""What a running search tells those who watch it: progress, and the text that can no longer be beaten.

watcher = Watcher()
for event in watcher.events(search): ...      # after each of its steps and decisions
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specrej.search.choosing import rank
from specrej.search.search import Search
from specrej.types import Decision

_STEP_S = 0.1
"""Least seconds between two reports of steps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """News of a search, in JSON's types; `payload["kind"]` is "queued", "started", "decision" or "step"."""

    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer, which can no longer be beaten; joined they are its text, or its beginning."""

    delta: str


class Watcher:
    """Remembers what was told of one search."""

    def __init__(self) -> None:
        self._has_begun = False
        self._num_decisions = 0
        self._ended: set[int] = set()
        self._next_step_s = 0.0
        self._num_told = 0
        """Characters of the answer."""

    def events(self, search: Search) -> Iterator[Progress | Text]:
        """What is new."""
        if not self._has_begun:
            self._has_begun = True
            yield Progress(
                {
                    "kind": "started",
                    "num_candidates": search.num_planned,
                    "prompt_tokens": len(search.prompt_ids),
                    "memory_bytes": search.budget_bytes,
                }
            )
        for number in range(self._num_decisions, len(search.decisions)):
            yield Progress(_decision(search, number, search.decisions[number]))
        self._num_decisions = len(search.decisions)
        yield from self._step(search)
        yield from self._answer(search)

    def _step(self, search: Search) -> Iterator[Progress]:
        live, now_s = search.live, time.monotonic()
        if live and now_s >= self._next_step_s:
            self._next_step_s = now_s + _STEP_S
            ended = {candidate.index for candidate in search.batch if candidate.state == "complete"}
            new, self._ended = sorted(ended - self._ended), ended
            yield Progress(
                {
                    "kind": "step",
                    "num_tokens": len(live[0].token_ids),
                    "num_live": len(live),
                    "ended": new,
                    "generated_tokens": search.usage.generated_tokens,
                    "kv_bytes": search.memory().in_use,
                }
            )

    def _answer(self, search: Search) -> Iterator[Text]:
        winner = search.winner
        if winner is None:
            return
        # Of a stop string that may be coming, no part is told.
        held_back = max((len(stop) - 1 for stop in search.sampling.stop), default=0)
        text = search.text_of(winner)
        num_safe = len(text) - held_back if winner.state == "live" else len(text)
        if num_safe > self._num_told:
            delta, self._num_told = text[self._num_told : num_safe], num_safe
            yield Text(delta)


def _decision(search: Search, number: int, decision: Decision) -> dict[str, Any]:
    """A decision with those it was about; who of all that are left leads (None if nobody is left), and its text."""
    scored = [search.candidates[index] for index in decision.scored]
    left = [candidate for candidate in search.candidates if candidate.state != "rejected"]
    best = min(left, key=lambda candidate: rank(candidate.reward, candidate.index), default=None)
    return {
        "kind": "decision",
        "number": number,
        "cause": decision.cause,
        "num_tokens": decision.num_tokens,
        "cut": decision.cut,
        "candidates": [
            {
                "index": candidate.index,
                "num_tokens": len(candidate.token_ids),
                "reward": candidate.rewards.get(number),
                "state": candidate.state,
            }
            for candidate in scored
        ],
        "kv_bytes": decision.kv_bytes,
        "kv_bytes_after": decision.kv_bytes_after,
        "best": None if best is None else best.index,
        "text": "" if best is None else best.text,
    }
