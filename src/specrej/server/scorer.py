"""Scoring on a thread of its own, with patience for so long only: a reward that hangs fails its own
request.

    scheduler = Scheduler(engine, pool, in_flight=16, observe=observe, score=TimedScorer(30.0))

Batches are scored one after another, since a reward model need not be safe to call from two
threads. One that is not done in time is given up, and its thread left to itself. The searches that
were in it, or in one that ended its thread (`SystemExit`, say), are tried again one by one, so that
those at fault fail and the others are only late.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread

from specrej.errors import RewardError, named
from specrej.search.rewarding import ToScore
from specrej.search.scoring import Given, ask
from specrej.search.search import Search


class _OutOfTimeError(Exception):
    pass


class TimedScorer:
    """Implements `specrej.search.scoring.Scorer`.

    Args:
        timeout_s: patience with one call of the reward.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._line: SimpleQueue[tuple[list[ToScore], Future[list[Given]]] | None] = SimpleQueue()
        # Daemons: a reward that hangs does not keep the process from ending.
        Thread(target=self._work, name="specrej-scoring", daemon=True).start()

    def __call__(self, searches: Sequence[Search]) -> Future[list[Given]]:
        # Their texts are made already, on the thread that owns the searches.
        return self.score([search.to_score() for search in searches])

    def score(self, batches: list[ToScore]) -> Future[list[Given]]:
        """What the rewards give for each of these; cancelled before its turn, none is asked."""
        future: Future[list[Given]] = Future()
        self._line.put((batches, future))
        return future

    def close(self) -> None:
        """Take nothing more; what is being scored is not waited for."""
        self._line.put(None)

    def _work(self) -> None:
        while self._score_next():
            pass

    def _score_next(self) -> bool:
        """Score what is next in line; False at its end. While it waits, nothing is held of the
        last batch.
        """
        if (one := self._line.get()) is None:
            return False
        batches, future = one
        if not future.set_running_or_notify_cancel():
            return True
        try:
            future.set_result(self._score(batches))
        except BaseException as error:  # not the reward's: its own are scores that there are not
            future.set_exception(error)
        return True

    def _score(self, batches: list[ToScore]) -> list[Given]:
        begun_s = time.perf_counter()
        try:
            return self._ask(batches)
        except BaseException as error:  # on its own thread a reward may raise anything
            if len(batches) > 1:
                return [one for batch in batches for one in self._score([batch])]
            [(reward, _, candidates)] = batches
            said = (
                f"in {self._timeout_s:g} s"
                if isinstance(error, _OutOfTimeError)
                else f"but {named(error)}"
            )
            failure = RewardError(
                f"the reward {reward.name!r} gave no scores for {len(candidates)} candidates "
                f"{said}",
                hint="give the server a longer --reward-timeout, or the reward more to compute "
                "with",
            )
            failure.__cause__ = error
            return [(failure, time.perf_counter() - begun_s)]

    def _ask(self, batches: list[ToScore]) -> list[Given]:
        """What the rewards say.

        Raises:
            _OutOfTimeError: nothing in time.
            BaseException: whatever ended their thread.
        """
        future: Future[list[Given]] = Future()

        def work() -> None:
            try:
                future.set_result(ask(batches))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=work, name="specrej-reward", daemon=True).start()
        if wait([future], self._timeout_s).not_done:
            raise _OutOfTimeError
        return future.result()
