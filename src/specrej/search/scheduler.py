"""Many searches over one engine.

Every search decides against its own memory budget, so its result does not depend on its neighbours.
All live candidates of all searches in flight advance in the same step, but for those that the pool
lets wait; those that decide at the same time are scored in one reward batch. A search begins as
soon as the pool has room for it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from specrej.engines.base import Engine, Token
from specrej.errors import DeviceMemoryError, EngineError, SpecrejError, contained, named
from specrej.rewards.base import Scores
from specrej.search.algorithms import Steps
from specrej.search.checks import engine_failed
from specrej.search.pool import Pool
from specrej.search.scoring import Given, Scorer, score_now
from specrej.search.search import Search
from specrej.types import Result, Schedule

_LOG = logging.getLogger("specrej")

Outcome = Result | SpecrejError

Maker = Callable[[], tuple[Search, Steps]]
"""Makes a search and the algorithm that drives it, when its turn has come."""

Watch = Callable[[Search], None]
"""Called with a search after each of its steps and decisions."""

_PATIENCE_S = 0.05
"""Seconds that a tick waits for scores when there is nothing else to do."""


@dataclass(eq=False)
class _Run:
    number: int
    search: Search
    steps: Steps
    schedule: Schedule
    is_scoring: bool = False


class Scheduler:
    """Searches that come and go over one engine.

    Args:
        engine: the engine that the searches are made for.
        pool: the memory that they share.
        in_flight: most searches at a time; those beyond wait in the order in which they came.
        observe: called after every step and decision of a search.
        score: scores the batches of searches, at once or in its own time: the others go on
            meanwhile.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        *,
        in_flight: int,
        observe: Watch,
        score: Scorer = score_now,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._in_flight = in_flight
        self._observe = observe
        self._waiting: deque[tuple[int, Maker]] = deque()
        self._next: tuple[int, Search, Steps] | None = None
        self._active: list[_Run] = []
        self._ending: list[_Run] = []
        """Not in flight any more, and not closed: the engine failed at it."""
        self._score = score
        self._scoring: list[tuple[list[_Run], Future[list[Given]]]] = []

    @property
    def num_waiting(self) -> int:
        """Searches that have not begun."""
        return len(self._waiting) + (self._next is not None)

    @property
    def num_active(self) -> int:
        """Searches in flight."""
        return len(self._active)

    @property
    def has_place(self) -> bool:
        """Whether a search that is submitted now may begin at once, if there is memory for it."""
        return not self.num_waiting and len(self._active) < self._in_flight

    def submit(self, number: int, maker: Maker) -> None:
        """Let a search begin as soon as there is room; its outcome will come with this number."""
        self._waiting.append((number, maker))

    def begin(self) -> Iterator[tuple[int, SpecrejError]]:
        """Begin searches while there is room; those that fail at it, whatever they raise, with
        their errors.
        """
        while len(self._active) < self._in_flight and (self._next or self._waiting):
            number = (self._next or self._waiting[0])[0]
            try:
                self._next = self._next or self._make()
                number, search, steps = self._next
                if not self._pool.admits([member.search for member in self._active], search):
                    return
                self._next = None
                self._active.append(_open(number, search, steps))
            except Exception as error:
                self._next = None
                yield number, as_outcome(error)

    def tick(self) -> Iterator[tuple[int, Outcome]]:
        """Begin what has room, take the decisions that are due, make one step; the outcomes of
        searches that ended.

        Raises:
            DeviceMemoryError: the device is out of memory with one candidate left in each search.
            Exception: whatever the engine raises; `fail` then ends the searches in flight.
        """
        begun_s = time.perf_counter()
        yield from self.begin()
        yield from self._decide()
        busy = {member.search.handle for member in self._active if member.is_scoring}
        limits = self._pool.allot([member.search for member in self._active], busy)
        if limits and (self._engine.can_hold_back or not busy):
            yield from self._step(limits)
        else:
            self._await_scores()
        self._pool.record([member.search for member in self._active], time.perf_counter() - begun_s)

    def fail(self, error: Exception) -> Iterator[tuple[int, SpecrejError]]:
        """End the searches in flight, which the engine failed with this error; their outcomes.
        Those that wait will begin.
        """
        _LOG.error("a step failed; the prompts in flight fail with it", exc_info=error)
        numbers = [member.number for member in (*self._ending, *self._active)]
        self.close()
        for number in numbers:
            yield number, engine_failed(error)

    def remove(self, number: int) -> Search | None:
        """End a search that is not wanted any more: its memory is free when this returns. None
        if it had not begun.
        """
        self._waiting = deque(one for one in self._waiting if one[0] != number)
        if self._next is not None and self._next[0] == number:
            self._next = None
        for member in self._active:
            if member.number == number:
                self._active.remove(member)
                member.search.close()
                return member.search
        return None

    def close(self) -> None:
        """End all searches. An engine that fails at it is logged."""
        ended, self._active, self._ending = [*self._ending, *self._active], [], []
        for member in ended:
            try:
                member.search.close()
            except Exception:
                _LOG.exception("the engine failed to close a prompt")

    def _decide(self) -> Iterator[tuple[int, Outcome]]:
        """Have those scored whose decision is due, resume those that were; the outcomes of those
        that ended.
        """
        while True:
            due = []
            for member in [member for member in self._active if not member.is_scoring]:
                try:
                    cause = member.search.due(member.schedule)
                    if cause is not None:
                        member.search.begin_decision(cause)
                        due.append(member)
                except Exception as error:
                    yield self._end(member, as_outcome(error))
            if due:
                self._scoring.append((due, self._score([member.search for member in due])))
                for member in due:
                    member.is_scoring = True
            scored = next((one for one in self._scoring if one[1].done()), None)
            if scored is None:
                return
            self._scoring.remove(scored)
            members, future = scored
            for member, (given, seconds) in zip(members, future.result(), strict=True):
                member.is_scoring = False
                # One that was taken out meanwhile is closed.
                outcome = (
                    _resume(member, given, seconds, self._observe)
                    if member in self._active
                    else None
                )
                if outcome is not None:
                    yield self._end(member, outcome)

    def _await_scores(self) -> None:
        """Wait until some have come, but not for long: others may want something of this thread."""
        wait([future for _, future in self._scoring], _PATIENCE_S, FIRST_COMPLETED)

    def _step(self, limits: Mapping[int, int]) -> Iterator[tuple[int, Outcome]]:
        """One step of these searches; the errors of those that cannot take what it gave them."""
        stepping = [member for member in self._active if member.search.handle in limits]
        begun = time.perf_counter()
        try:
            tokens = self._engine.step(limits)
        except DeviceMemoryError as error:
            yield from self._make_room(error)
            return
        shares: dict[int, list[Token]] = {handle: [] for handle in limits}
        for token in tokens:
            if token.prompt not in shares:
                raise EngineError(
                    f"the engine failed: it gave a token of prompt {token.prompt}, and was asked "
                    f"for {sorted(shares)}"
                )
            shares[token.prompt].append(token)
        seconds = (time.perf_counter() - begun) / max(len(tokens), 1)
        for member in stepping:
            if received := shares[member.search.handle]:
                try:
                    member.search.receive(received, seconds * len(received))
                    self._observe(member.search)
                except Exception as error:
                    yield self._end(member, as_outcome(error))

    def _make_room(self, error: DeviceMemoryError) -> Iterator[tuple[int, Outcome]]:
        """While some are being scored, wait: their decision may free what is needed, and until then
        their batch must stay what was handed over. Else the largest gives up candidates; with
        nothing left to give up, the device is too small.
        """
        if any(member.is_scoring for member in self._active):
            self._await_scores()
            return
        for member in sorted(
            self._active, key=lambda member: member.search.memory().in_use, reverse=True
        ):
            try:
                if member.search.give_up():
                    return
            except Exception as failure:
                yield self._end(member, as_outcome(failure))
                return
        raise error

    def _end(self, member: _Run, outcome: Outcome) -> tuple[int, Outcome]:
        """Free what a search holds; its number and outcome."""
        self._active.remove(member)
        self._ending.append(member)
        member.search.close()
        self._ending.remove(member)
        return member.number, outcome

    def _make(self) -> tuple[int, Search, Steps]:
        number, maker = self._waiting.popleft()
        search, steps = maker()
        self._pool.check(search)
        return number, search, steps


def run(
    engine: Engine, makers: Iterable[Maker], *, pool: Pool, in_flight: int = 1, observe: Watch
) -> Iterator[tuple[int, Outcome]]:
    """Run searches to their end; yield the number and the outcome of each as it ends.

    A search that fails yields its error; the others go on. A step that fails is the error of those
    in flight; the next ones begin.

    Args:
        engine: the engine that the searches are made for.
        makers: one for each search, taken in order as places become free.
        pool: the memory that they share.
        in_flight: most searches at a time.
        observe: called after every step and decision of a search.

    Raises:
        DeviceMemoryError: the device is out of memory with one candidate left in each search.
    """
    scheduler = Scheduler(engine, pool, in_flight=in_flight, observe=observe)
    following = enumerate(makers)
    try:
        while True:
            while scheduler.has_place and (one := next(following, None)) is not None:
                scheduler.submit(*one)
                yield from scheduler.begin()
            if not scheduler.num_waiting + scheduler.num_active:
                return
            try:
                yield from scheduler.tick()
            except DeviceMemoryError:
                raise
            except Exception as error:
                yield from scheduler.fail(error)
    finally:
        scheduler.close()


def _open(number: int, search: Search, steps: Steps) -> _Run:
    try:
        search.open()
        try:
            with contained("the algorithm or its policy"):
                return _Run(number, search, steps, next(steps))
        except StopIteration:
            raise search.progress.unanswered(len(search.live)) from None
    except BaseException:
        search.close()
        raise


def _resume(member: _Run, given: Scores, seconds: float, observe: Watch) -> Outcome | None:
    """Take one decision. The search's outcome if that was its end."""
    search = member.search
    search.clock.add("reward_s", seconds)
    try:
        with search.clock.span("other_s"):
            scores = search.take_scores(given)
            schedule = _next_schedule(member, scores)
            observe(search)
            if schedule is None:
                return search.result()
            member.schedule = schedule
    except Exception as error:
        return as_outcome(error)
    return None


def _next_schedule(member: _Run, scores: list[float]) -> Schedule | None:
    """What the algorithm waits by now that it has these scores; None if it has ended."""
    try:
        with contained("the algorithm or its policy"):
            return member.steps.send(scores)
    except StopIteration as end:
        member.search.end(end.value)
        return None


def as_outcome(error: Exception) -> SpecrejError:
    """What a search ends with that raised this: the error itself, or one that quotes what nobody
    foresaw.
    """
    if isinstance(error, SpecrejError):
        return error
    _LOG.error("a prompt failed, the others go on", exc_info=error)
    outcome = SpecrejError(f"the prompt failed: {named(error)}", hint="the log says where")
    outcome.__cause__ = error
    return outcome
