"""Many searches over one engine.

Every search decides against its own memory budget, so its result does not depend on its neighbours. All live
candidates of all searches in flight advance in the same step; when one search ends, the next begins.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from specrej.algorithms import Steps
from specrej.engines.base import Engine, Token
from specrej.errors import DeviceMemoryError, SpecrejError
from specrej.policies import Schedule
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
    engine: Engine, makers: Iterable[Maker], *, in_flight: int = 1, observe: Observer
) -> Iterator[tuple[int, Outcome]]:
    """Run searches to their end; yield the number and the outcome of each as it ends.

    A search that fails yields its error; the others go on.

    Args:
        engine: the engine that the searches are made for.
        makers: one for each search, taken in order as places become free.
        in_flight: most searches at a time.
        observe: called after every step and decision of a search.

    Raises:
        DeviceMemoryError: the device is out of memory with one candidate left in each search.
    """
    waiting = enumerate(makers)
    active: list[_Run] = []
    try:
        while True:
            while len(active) < in_flight and (following := next(waiting, None)) is not None:
                begun = _begin(*following)
                if isinstance(begun, SpecrejError):
                    yield following[0], begun
                else:
                    active.append(begun)
            if not active:
                return
            for member in list(active):
                outcome = _decide(member, observe)
                if outcome is not None:
                    active.remove(member)
                    member.search.close()
                    yield member.number, outcome
            _step(engine, active, observe)
    finally:
        for member in active:
            member.search.close()


def _begin(number: int, maker: Maker) -> _Run | SpecrejError:
    try:
        search, steps = maker()
    except SpecrejError as error:
        return error
    try:
        search.open()
        return _Run(number, search, steps, next(steps))
    except BaseException as error:
        search.close()
        if isinstance(error, SpecrejError):
            return error
        raise


def _decide(member: _Run, observe: Observer) -> Outcome | None:
    """Resume the algorithm while a decision is due. Its outcome if that was its end."""
    search = member.search
    begun, reward_s = time.perf_counter(), search.usage.reward_s
    try:
        while search.is_due(member.schedule):
            schedule = next(member.steps, None)
            observe(search)
            if schedule is None:
                return search.result()
            member.schedule = schedule
    except SpecrejError as error:
        return error
    finally:
        search.usage.other_s += (time.perf_counter() - begun) - (search.usage.reward_s - reward_s)
    return None


def _step(engine: Engine, active: list[_Run], observe: Observer) -> None:
    if not active:
        return
    begun = time.perf_counter()
    try:
        tokens = engine.step([member.search.handle for member in active])
    except DeviceMemoryError:
        # The largest gives up candidates first; with nothing left to give up, the device is too small.
        by_size = sorted(active, key=lambda member: member.search.memory().in_use, reverse=True)
        if not any(member.search.give_up() for member in by_size):
            raise
        return
    shares: dict[int, list[Token]] = {member.search.handle: [] for member in active}
    for token in tokens:
        shares[token.prompt].append(token)
    seconds = (time.perf_counter() - begun) / len(tokens)
    for member in active:
        received = shares[member.search.handle]
        member.search.receive(received, seconds * len(received))
        observe(member.search)
