"""Many searches over one engine.

Every search decides against its own memory budget, so its result does not depend on its neighbours. All live
candidates of all searches in flight advance in the same step, but for those that the pool lets wait; those that decide
at the same time are scored in one reward batch. A search begins as soon as the pool has room for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from specrej.algorithms import Steps
from specrej.engines.base import Engine, Token
from specrej.errors import DeviceMemoryError, SpecrejError
from specrej.policies import Schedule
from specrej.pool import Pool
from specrej.scoring import score_batches
from specrej.search import Search
from specrej.types import Result

Outcome = Result | SpecrejError

Maker = Callable[[], tuple[Search, Steps]]
"""Makes a search and the algorithm that drives it, when its turn has come."""

Observer = Callable[[Search], None]
"""Called with a search after each of its steps and decisions."""


@dataclass
class _Run:
    number: int
    search: Search
    steps: Steps
    schedule: Schedule


def run(
    engine: Engine, makers: Iterable[Maker], *, pool: Pool, in_flight: int = 1, observe: Observer
) -> Iterator[tuple[int, Outcome]]:
    """Run searches to their end; yield the number and the outcome of each as it ends.

    A search that fails yields its error; the others go on.

    Args:
        engine: the engine that the searches are made for.
        makers: one for each search, taken in order as places become free.
        pool: the memory that they share.
        in_flight: most searches at a time.
        observe: called after every step and decision of a search.

    Raises:
        DeviceMemoryError: the device is out of memory with one candidate left in each search.
    """
    waiting = _Waiting(makers, pool)
    active: list[_Run] = []
    last_s = time.perf_counter()
    try:
        while True:
            while len(active) < in_flight and (begun := waiting.begin(active)) is not None:
                if isinstance(begun, _Run):
                    active.append(begun)
                else:
                    yield begun
            if not active:
                return
            for member, outcome in _decide(active, observe):
                active.remove(member)
                member.search.close()
                yield member.number, outcome
            _step(engine, pool, active, observe)
            now_s = time.perf_counter()
            pool.record([member.search for member in active], now_s - last_s)
            last_s = now_s
    finally:
        for member in active:
            member.search.close()


class _Waiting:
    """The searches that have not begun, of which at most one is made already."""

    def __init__(self, makers: Iterable[Maker], pool: Pool) -> None:
        self._makers = enumerate(makers)
        self._pool = pool
        self._next: tuple[int, Search, Steps] | None = None

    def begin(self, active: list[_Run]) -> _Run | tuple[int, SpecrejError] | None:
        """The next search, or why it failed; None where there is none, or no room for it."""
        if self._next is None:
            if (following := next(self._makers, None)) is None:
                return None
            number, maker = following
            try:
                search, steps = maker()
                self._pool.check(search)
            except SpecrejError as error:
                return number, error
            self._next = number, search, steps
        number, search, steps = self._next
        if not self._pool.admits([member.search for member in active], search):
            return None
        self._next = None
        try:
            search.open()
            return _Run(number, search, steps, next(steps))
        except BaseException as error:
            search.close()
            if isinstance(error, SpecrejError):
                return number, error
            raise


def _decide(active: list[_Run], observe: Observer) -> Iterator[tuple[_Run, Outcome]]:
    """Resume algorithms while decisions are due, several searches at a time; those that ended, with their outcome."""
    due = [member for member in active if member.search.is_due(member.schedule)]
    while due:
        scored = score_batches([member.search for member in due])
        going_on = []
        for member, (given, seconds) in zip(due, scored, strict=True):
            outcome = _resume(member, given, seconds, observe)
            if outcome is not None:
                yield member, outcome
            elif member.search.is_due(member.schedule):
                going_on.append(member)
        due = going_on


def _resume(member: _Run, given: Sequence[float] | Exception, seconds: float, observe: Observer) -> Outcome | None:
    """Take one decision. The search's outcome if that was its end."""
    search = member.search
    begun, reward_s = time.perf_counter(), search.usage.reward_s
    try:
        scores = search.take_scores(given)
        schedule = _next_schedule(member.steps, scores)
        observe(search)
        if schedule is None:
            return search.result()
        member.schedule = schedule
    except SpecrejError as error:
        return error
    finally:
        search.usage.reward_s += seconds
        search.usage.other_s += (time.perf_counter() - begun) - (search.usage.reward_s - reward_s - seconds)
    return None


def _next_schedule(steps: Steps, scores: list[float]) -> Schedule | None:
    try:
        return steps.send(scores)
    except StopIteration:
        return None


def _step(engine: Engine, pool: Pool, active: list[_Run], observe: Observer) -> None:
    if not active:
        return
    limits = pool.allot([member.search for member in active])
    stepping = [member for member in active if member.search.handle in limits]
    begun = time.perf_counter()
    try:
        tokens = engine.step(limits)
    except DeviceMemoryError:
        # The largest gives up candidates first; with nothing left to give up, the device is too small.
        by_size = sorted(active, key=lambda member: member.search.memory().in_use, reverse=True)
        if not any(member.search.give_up() for member in by_size):
            raise
        return
    shares: dict[int, list[Token]] = {handle: [] for handle in limits}
    for token in tokens:
        shares[token.prompt].append(token)
    seconds = (time.perf_counter() - begun) / len(tokens)
    for member in stepping:
        received = shares[member.search.handle]
        member.search.receive(received, seconds * len(received))
        observe(member.search)
