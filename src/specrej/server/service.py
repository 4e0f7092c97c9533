"""Requests that share one engine: a thread that runs the scheduler, and tickets to follow what
becomes of each.

    service = Service(engine, reward, Pool(2**30))
    service.start()
    ticket = service.submit("Why is the sky blue?", Settings(n=16), deadline_s=60, is_watched=True)
    async for event in ticket:                   # how it stands, its text, and Ended as the last
        ...
    await service.stop(grace_s=30)

Engine, searches and scheduler belong to the thread; an event loop talks to it through a queue of
calls, which it makes between two steps. Nothing of HTTP here.

Whatever is raised on the thread fails the requests that it concerns, is logged, and the thread goes
on. Where it cannot, or stands still, the service has failed: `has_failed` says so, and whoever runs
it ends the process (`running`).
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from specrej.api import IN_FLIGHT, prepare
from specrej.engines.base import Engine
from specrej.engines.reading import Likelihood
from specrej.errors import (
    DeadlineError,
    EngineError,
    QueueFullError,
    ShutdownError,
    SpecrejError,
)
from specrej.rewards.base import Reward
from specrej.search.algorithms import Steps
from specrej.search.budget import Total
from specrej.search.checks import engine_failed
from specrej.search.events import Ended, Reporter
from specrej.search.pool import Pool
from specrej.search.scheduler import Outcome, Scheduler
from specrej.search.search import Search
from specrej.server.asked import MOST_AUTO
from specrej.server.given import GivenAnswers
from specrej.server.reading import Readings
from specrej.server.scorer import TimedScorer
from specrej.server.tickets import StreamEvent as StreamEvent
from specrej.server.tickets import Ticket as Ticket
from specrej.settings import Settings
from specrej.types import Prompt, Result

_LOG = logging.getLogger("specrej.server")

_RECENT = 0.2
"""Weight of the newest request in the mean of seconds that a request takes."""

_MOST_FAILURES = 10
"""In a row, with no answer between them: then the engine is taken for broken, as a GPU is after
a fault of its code."""
_LAST_WORDS_S = 10.0
"""For the thread to end, once it was asked to."""

_STEP_S = 0.1
"""Least seconds between two reports of steps."""


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    submitted_s: float
    deadline_s: float
    """When it comes, on the monotonic clock."""
    reporter: Reporter
    search: Search | None = None
    """From when it is made."""
    has_begun: bool = False
    """Whether the engine was asked about it."""


class Service:
    """Answers requests side by side, in one pool of memory.

    Args:
        engine: decodes for all.
        reward: chooses for all.
        pool: the memory that they share.
        in_flight: most requests that run side by side.
        max_queue: most requests that wait; those beyond are turned away.
        reward_timeout_s: patience with one call of the reward.
    """

    def __init__(
        self,
        engine: Engine,
        reward: Reward,
        pool: Pool,
        *,
        in_flight: int = IN_FLIGHT,
        max_queue: int = 64,
        reward_timeout_s: float = 60.0,
    ) -> None:
        self.engine = engine
        self.reward = reward
        self.is_stopping = False
        self.has_failed = False
        self.readings = Readings(engine, pool)
        self.max_queue = max_queue
        self._pool = pool
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._scorer = TimedScorer(reward_timeout_s)
        self.given = GivenAnswers(reward, self._scorer, self._calls.put, max_queue)
        self._scheduler = Scheduler(
            engine, pool, in_flight=in_flight, observe=self._observe, score=self._scorer
        )
        self._requests: dict[int, _Request] = {}
        self._numbers: dict[Search, int] = {}
        self._numbering = itertools.count()
        self._open: dict[int, Ticket] = {}
        self._lock = Lock()
        self._mean_s = 5.0
        self._has_ended = False
        self._num_failures = 0
        self._beat_s = math.inf
        """When the thread last went round; never while it has nothing to do."""
        self._thread = Thread(target=self._run, name="specrej-engine", daemon=True)

    # What an event loop calls

    @property
    def num_active(self) -> int:
        """Requests whose candidates are being decoded or scored."""
        return self._scheduler.num_active

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return max(len(self._open) - self.num_active, 0) + len(self.readings)

    @property
    def kv_bytes(self) -> int:
        """KV of all requests in flight, after the last step."""
        return self._pool.reserved_bytes

    @property
    def total_bytes(self) -> int:
        """The memory that requests share."""
        return self._pool.total_bytes

    @property
    def still_s(self) -> float:
        """Seconds for which the thread has been at one thing; 0 while it has nothing to do."""
        return max(time.monotonic() - self._beat_s, 0.0)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(
        self,
        prompt: Prompt,
        settings: Settings,
        *,
        deadline_s: float,
        is_watched: bool,
        place: int = 0,
    ) -> Ticket:
        """Take a request; to be called on an event loop.

        Args:
            prompt: a text or a conversation.
            settings: how to answer it.
            deadline_s: seconds from now that it may take, its waiting included.
            is_watched: whether events before the last are wanted.
            place: of the prompt among those that are asked for together.

        Raises:
            QueueFullError: too many wait already.
            ShutdownError: the service is being stopped.
        """
        with self._lock:
            num_waiting = self._check_room(1)
            number = next(self._numbering)
            ticket = self._open[number] = Ticket(
                self.cancel, number, num_waiting, is_watched=is_watched, place=place
            )
        now_s = time.monotonic()
        request = _Request(ticket, now_s, now_s + deadline_s, Reporter(place, _STEP_S))
        self._calls.put(lambda: self._take(request, prompt, settings))
        return ticket

    def read(
        self, prompts: Sequence[Sequence[int]], num_top: int
    ) -> list[asyncio.Future[list[Likelihood]]]:
        """Have prompts read for how likely their tokens are, all or none; on an event loop.

        Raises:
            QueueFullError, ShutdownError: as `submit` does.
        """
        with self._lock:
            self._check_room(len(prompts))
            futures = [self.readings.add(ids, num_top) for ids in prompts]
        self._calls.put(lambda: None)  # a thread that has nothing to do looks up
        return futures

    def _check_room(self, num_more: int) -> int:
        """See that so many more may wait; how many do."""
        if self.is_stopping or self.has_failed:
            raise ShutdownError(
                "the server is being stopped", hint="send the request to another one, or later"
            )
        num_waiting = self.num_waiting
        if num_waiting + num_more > self.max_queue:
            retry_after_s = math.ceil(self._mean_s * num_waiting / max(self.num_active, 1))
            raise QueueFullError(
                f"{num_waiting} requests are waiting already", retry_after_s=max(retry_after_s, 1)
            )
        return num_waiting

    def cancel(self, number: int) -> None:
        """Drop a request that nobody waits for."""
        self._calls.put(lambda: self._drop(number))

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, let what runs end for so long, tell the others, and end the thread."""
        self.is_stopping = self.given.is_stopping = True
        until_s = time.monotonic() + grace_s
        while (self._open or self.given.num_open or self.readings) and time.monotonic() < until_s:
            if self.has_failed:
                break
            await asyncio.sleep(0.02)
        self._calls.put(self._end_all)
        until_s = time.monotonic() + _LAST_WORDS_S
        while self._thread.is_alive():
            if time.monotonic() > until_s and not self.has_failed:
                self.fail("it did not end when it was asked to")
            if self.has_failed:
                break
            await asyncio.sleep(0.01)
        self._scorer.close()

    def fail(self, reason: str) -> None:
        """Nothing will be answered any more: take no request, and tell those that wait. From any
        thread.
        """
        self.has_failed = True
        _LOG.critical("the thread that decodes has failed: %s", reason)
        with self._lock:
            tickets, self._open = list(self._open.values()), {}
        error = SpecrejError(f"the thread that decodes has failed: {reason}")
        for ticket in tickets:
            ticket.tell(Ended(error, prompt=ticket.place))
        self.given.end_all(error)
        self.readings.end_all(error)

    # What the thread does

    def _run(self) -> None:
        try:
            while not self._has_ended:
                self._go_round()
        except BaseException as error:
            _LOG.exception("the thread cannot go on")
            self.fail(type(error).__name__)

    def _go_round(self) -> None:
        for work in (self._make_calls, self._meet_deadlines, self.readings.do_next, self._tick):
            try:
                work()
            except (
                BaseException
            ) as error:  # whatever it is, and wherever it is from: other requests are to be served
                _LOG.exception("a step failed; the requests in flight fail with it")
                self._num_failures += not isinstance(error, SpecrejError)
                self._fail_active(error)
                if self._num_failures >= _MOST_FAILURES:
                    raise

    def _tick(self) -> None:
        for number, outcome in self._scheduler.tick():
            self._end(number, outcome)
            if isinstance(outcome, Result):
                self._num_failures = 0
            elif isinstance(outcome, EngineError) and outcome.__cause__ is not None:
                # On one prompt; a broken device fails on every one.
                self._num_failures += not isinstance(outcome.__cause__, SpecrejError)
                if self._num_failures >= _MOST_FAILURES:
                    raise outcome

    def _meet_deadlines(self) -> None:
        now_s = time.monotonic()
        for number, request in list(self._requests.items()):
            if now_s >= request.deadline_s:
                self._give_up(number, request)

    def _make_calls(self) -> None:
        """What was asked for since the last step; with nothing to run, wait for it."""
        is_idle = not self._requests and not self.readings
        with contextlib.suppress(Empty):
            while True:
                self._beat_s = math.inf if is_idle else time.monotonic()
                call = self._calls.get(block=is_idle)
                self._beat_s = time.monotonic()
                is_idle = False
                call()

    def _take(self, request: _Request, prompt: Prompt, settings: Settings) -> None:
        def make() -> tuple[Search, Steps]:
            request.has_begun = True
            total = Total(self.total_bytes, most_candidates=MOST_AUTO)
            search, steps = prepare(self.engine, self.reward, prompt, settings, total)
            request.search = search
            self._numbers[search] = request.ticket.number
            return search, steps

        self._requests[request.ticket.number] = request
        self._scheduler.submit(request.ticket.number, make)

    def _observe(self, search: Search) -> None:
        request = self._requests[self._numbers[search]]
        if request.ticket.is_watched:
            for event in request.reporter.events(search):
                request.ticket.tell(event)

    def _end(self, number: int, outcome: Outcome, *, is_late: bool = False) -> None:
        request = self._forget(number)
        self._mean_s += _RECENT * (time.monotonic() - request.submitted_s - self._mean_s)
        request.ticket.tell(Ended(outcome, is_late, request.ticket.place))

    def _forget(self, number: int) -> _Request:
        request = self._requests.pop(number)
        if request.search is not None:
            self._numbers.pop(request.search, None)
        with self._lock:
            self._open.pop(number, None)
        return request

    def _drop(self, number: int) -> None:
        if number in self._requests:
            self._free(number)
            self._forget(number)

    def _give_up(self, number: int, request: _Request) -> None:
        """The deadline has come: the best complete candidate is the answer, if there is one."""
        search = self._free(number)
        seconds = time.monotonic() - request.submitted_s
        outcome: Outcome = DeadlineError(
            f"no candidate was complete after {seconds:.1f} s"
            + ("" if search else ", all spent in the queue"),
            hint="ask for fewer tokens or candidates, or give it more time",
        )
        if search is not None and search.candidates:
            try:
                result = search.result()
                outcome = result if result.best.state == "complete" else outcome
            except SpecrejError:  # the reward's filter or the engine left nobody
                pass
            except Exception:
                _LOG.exception("a request that is late has no answer")
        self._end(number, outcome, is_late=True)

    def _fail_active(self, error: BaseException) -> None:
        outcome = engine_failed(error)
        for number in [number for number, request in self._requests.items() if request.has_begun]:
            self._free(number)
            self._end(number, outcome)

    def _free(self, number: int) -> Search | None:
        """Take a request from the scheduler; what its cleanup raises is logged.

        Raises:
            EngineError: the engine still holds its KV.
        """
        search = self._requests[number].search
        try:
            removed = self._scheduler.remove(number)
        except BaseException:
            _LOG.exception("the cleanup of a request failed")
            removed = search
        if search is not None and search.is_open:
            raise EngineError("the engine still holds KV of a request that has ended")
        return removed

    def _end_all(self) -> None:
        error = ShutdownError("the server was stopped before the answer was complete")
        for number in list(self._requests):
            self._free(number)
            self._end(number, error)
        self.given.end_all(error)
        self.readings.end_all(error)
        self._has_ended = True
