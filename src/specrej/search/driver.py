"""A thread that runs searches as they come, side by side; how each ended is a future's result.

    driver = Driver(engine, Pool(2**30), in_flight=16)
    future = driver.submit(maker, unobserved)      # cancel it, and its memory is free within a step
    future.result()
    driver.close()

Engine, searches and scheduler belong to the thread. Other threads talk to it through a queue of
calls, which it makes between two steps. Whatever is raised on it fails the searches that have
begun, is logged, and the thread goes on.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from threading import Event, Thread

from specrej.engines.base import Engine
from specrej.errors import ShutdownError, SpecrejError
from specrej.search.algorithms import Steps
from specrej.search.checks import engine_failed
from specrej.search.pool import Pool
from specrej.search.scheduler import Maker, Outcome, Scheduler, Watch
from specrej.search.search import Search

_LOG = logging.getLogger("specrej")


class Driver:
    """Runs searches over one engine on a thread of its own.

    Args:
        engine: that the searches are made for; nobody else uses it meanwhile.
        pool: the memory that they share.
        in_flight: most searches side by side; others wait in the order in which they came.
    """

    def __init__(self, engine: Engine, pool: Pool, *, in_flight: int) -> None:
        self._scheduler = Scheduler(engine, pool, in_flight=in_flight, observe=self._observe)
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._futures: dict[int, Future[Outcome]] = {}
        self._searches: dict[int, Search | None] = {}
        """Of those that have begun; None while it is made."""
        self._observers: dict[Search, Watch] = {}
        self._numbers = itertools.count()
        self._has_ended = False
        self._thread = Thread(target=self._run, name="specrej-driver", daemon=True)
        self._thread.start()

    def submit(self, maker: Maker, observe: Watch) -> "Future[Outcome]":
        """Run a search when its turn has come; `observe` is called on the thread."""
        future: Future[Outcome] = Future()
        number = next(self._numbers)
        self._calls.put(lambda: self._take(number, maker, observe, future))
        future.add_done_callback(lambda _: self._calls.put(lambda: self._drop(number)))
        return future

    def settle(self) -> None:
        """Return when nothing is left of searches whose futures are done."""
        is_settled = Event()
        self._calls.put(is_settled.set)
        is_settled.wait()

    def close(self) -> None:
        """End all searches and the thread. Futures that are not done get a ShutdownError."""
        self._calls.put(self._end_all)
        self._thread.join()

    # What the thread does

    def _run(self) -> None:
        while not self._has_ended:
            try:
                self._make_calls()
                for number, outcome in self._scheduler.tick():
                    self._end(number, outcome)
            except BaseException as error:  # whatever it is: those that come are to be served
                _LOG.exception("a step failed; the searches in flight fail with it")
                self._fail(list(self._searches), engine_failed(error))

    def _make_calls(self) -> None:
        """What was asked for since the last step; with nothing to run, wait for it."""
        is_idle = not self._futures
        with contextlib.suppress(Empty):
            while True:
                self._calls.get(block=is_idle)()
                is_idle = False

    def _take(self, number: int, maker: Maker, observe: Watch, future: "Future[Outcome]") -> None:
        def make() -> tuple[Search, Steps]:
            self._searches[number] = None
            search, steps = maker()
            self._searches[number], self._observers[search] = search, observe
            return search, steps

        if not future.cancelled():
            self._futures[number] = future
            self._scheduler.submit(number, make)

    def _observe(self, search: Search) -> None:
        self._observers[search](search)

    def _end(self, number: int, outcome: Outcome) -> None:
        self._forget(number)
        with contextlib.suppress(InvalidStateError, KeyError):  # cancelled meanwhile
            self._futures.pop(number).set_result(outcome)

    def _drop(self, number: int) -> None:
        if self._futures.pop(number, None) is not None:
            self._free(number)

    def _free(self, number: int) -> None:
        try:
            self._scheduler.remove(number)
        except BaseException:
            _LOG.exception("the cleanup of a prompt failed")
        self._forget(number)

    def _forget(self, number: int) -> None:
        if (search := self._searches.pop(number, None)) is not None:
            del self._observers[search]

    def _fail(self, numbers: Sequence[int], outcome: SpecrejError) -> None:
        for number in numbers:
            self._free(number)
            self._end(number, outcome)

    def _end_all(self) -> None:
        self._has_ended = True
        outcome = ShutdownError("the session was closed before the answer was complete")
        self._fail(list(self._futures), outcome)
