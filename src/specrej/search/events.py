"""What a run tells those who watch it, as records that do not change: the same in Python and in the
server's stream.

    specrej.generate("Why is the sky blue?", observe=print)

A prompt's events are one `Started`, then `Step` and `Decided` as they come, and one `Ended`. `Text`
comes from where no other candidate can win any more.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from specrej.errors import SpecrejError, named
from specrej.search.choosing import rank
from specrej.search.search import Search
from specrej.types import Candidate, Cause, Decision, Result, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """On a server: the request waits for its turn."""

    kind: ClassVar = "queued"
    num_ahead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A prompt was read, and its first candidates are about to be decoded."""

    kind: ClassVar = "started"
    prompt: int = 0
    """Which prompt of a batch, or which run of `compare`, counted from 0."""
    num_candidates: int
    """Of all waves together."""
    prompt_tokens: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Every live candidate has one more token."""

    kind: ClassVar = "step"
    prompt: int = 0
    num_tokens: int
    """That live candidates have, the longest of them."""
    num_live: int
    ended: tuple[int, ...]
    """Indices of those that have come to their end since the last of these events."""
    generated_tokens: int
    """Of all candidates so far."""
    kv_bytes: int
    seconds: float
    """That the prompt has taken so far."""


@dataclass(frozen=True, slots=True)
class Scored:
    """How a candidate stands after a decision that was about it."""

    index: int
    num_tokens: int
    reward: float | None
    state: State
    parent: int | None = None
    """Whose copy it began as, with `num_inherited` tokens."""
    num_inherited: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Candidates were scored, and some of them rejected."""

    kind: ClassVar = "decision"
    prompt: int = 0
    number: int
    cause: Cause
    num_tokens: int
    cut: float | None
    candidates: tuple[Scored, ...]
    num_rejected: int
    """Of these, by this decision."""
    kv_bytes: int
    kv_bytes_after: int
    best: int | None
    """Who leads of all that are left; None if nobody is left."""
    best_reward: float | None
    text: str
    """Its text so far."""


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer, which can no longer be beaten; joined they are its text, or
    its beginning.
    """

    kind: ClassVar = "text"
    delta: str
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event: the result, or the error of a prompt that failed.

    `is_late`: a deadline came, and the outcome is the best complete candidate by then.
    """

    kind: ClassVar = "ended"
    outcome: Result | SpecrejError
    is_late: bool = False
    prompt: int = 0


Event = Started | Step | Decided | Text | Ended


Observer = Callable[[Event], None]
"""Called with each event of a run: on the thread that decodes, or on the event loop that awaits the
answer. One that raises fails its prompt."""


def payload_of(event: Queued | Started | Step | Decided) -> dict[str, Any]:
    """What a progress event holds, in JSON's types, its kind first and the prompt's number left
    out.
    """
    fields = {name: value for name, value in asdict(event).items() if name != "prompt"}
    return {"kind": event.kind, **fields}


class Reporter:
    """Makes the events of one search; remembers what it has told.

    Args:
        prompt: its number, which the events carry.
        step_s: least seconds between two events of steps.
    """

    def __init__(self, prompt: int = 0, step_s: float = 0.0) -> None:
        self._prompt = prompt
        self._step_s = step_s
        self._has_begun = False
        self._num_decisions = 0
        self._ended: set[int] = set()
        self._next_step_s = 0.0
        self._num_told = 0
        """Characters of the answer."""

    def events(self, search: Search) -> Iterator[Started | Step | Decided | Text]:
        """What is new after a step or a decision."""
        if not self._has_begun:
            self._has_begun = True
            yield Started(
                prompt=self._prompt,
                num_candidates=search.num_planned,
                prompt_tokens=len(search.prompt_ids),
                memory_bytes=search.budget_bytes,
            )
        for number in range(self._num_decisions, len(search.decisions)):
            yield _decided(self._prompt, search, number, search.decisions[number])
        self._num_decisions = len(search.decisions)
        yield from self._step(search)
        yield from self._answer(search)

    def _step(self, search: Search) -> Iterator[Step]:
        live, now_s = search.live, time.monotonic()
        if live and now_s >= self._next_step_s:
            self._next_step_s = now_s + self._step_s
            ended = {candidate.index for candidate in search.batch if candidate.state == "complete"}
            new, self._ended = sorted(ended - self._ended), ended
            yield Step(
                prompt=self._prompt,
                num_tokens=max(len(candidate.token_ids) for candidate in live),
                num_live=len(live),
                ended=tuple(new),
                generated_tokens=search.usage.generated_tokens,
                kv_bytes=search.memory().in_use,
                seconds=search.usage.total_s,
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
            yield Text(delta, self._prompt)


class Watcher:
    """Turns the steps and decisions of searches into events for an observer; without one it does
    nothing.
    """

    def __init__(self, observe: Observer | None) -> None:
        self._observe = observe
        self._reporters: dict[int, Reporter] = {}

    def __call__(self, search: Search) -> None:
        """A search has made a step or taken a decision.

        Raises:
            SpecrejError: the observer failed.
        """
        if self._observe is not None:
            reporter = self._reporters.setdefault(search.number, Reporter(search.number))
            for event in reporter.events(search):
                tell(self._observe, event)

    def end(self, number: int, outcome: Result | SpecrejError) -> Result | SpecrejError:
        """The prompt of this number has come to its end. Its outcome: an error where the observer
        fails on a result.
        """
        self._reporters.pop(number, None)
        if self._observe is not None:
            try:
                tell(self._observe, Ended(outcome, prompt=number))
            except SpecrejError as error:
                return outcome if isinstance(outcome, SpecrejError) else error
        return outcome


def tell(observe: Observer, event: Event) -> None:
    """Call an observer.

    Raises:
        SpecrejError: it failed.
    """
    try:
        observe(event)
    except SpecrejError:
        raise
    except Exception as error:
        words = f"the observer failed on {type(event).__name__}: {named(error)}"
        raise SpecrejError(words, hint="what observe= gets must not raise") from error


def _decided(prompt: int, search: Search, number: int, decision: Decision) -> Decided:
    left = [candidate for candidate in search.candidates if candidate.state != "rejected"]
    best: Candidate | None = min(
        left, key=lambda candidate: rank(candidate.reward, candidate.index), default=None
    )
    scored = (search.candidates[index] for index in decision.scored)
    return Decided(
        prompt=prompt,
        number=number,
        cause=decision.cause,
        num_tokens=decision.num_tokens,
        cut=decision.cut,
        candidates=tuple(
            Scored(
                c.index,
                len(c.token_ids),
                c.rewards.get(number),
                c.state,
                c.parent,
                c.num_inherited,
            )
            for c in scored
        ),
        num_rejected=len(decision.rejected),
        kv_bytes=decision.kv_bytes,
        kv_bytes_after=decision.kv_bytes_after,
        best=None if best is None else best.index,
        best_reward=None if best is None else best.reward,
        text="" if best is None else best.text,
    )
