"""Prompts whose tokens' log-probabilities are asked for, read by the thread that decodes, one
between two steps.

    readings = Readings(engine, pool)
    future = readings.add(ids, num_top=5)    # on an event loop
    readings.do_next()                       # on the thread, between two steps

A reading holds the prompt's KV while it runs, and nothing before or after. So it waits until that
much of what requests share is free, before any request that has not begun. Those in flight wait for
one prompt's reading at most between two of their steps.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from specrej.engines.base import Engine
from specrej.engines.reading import Likelihood, prompt_logprobs
from specrej.errors import BudgetError, SpecrejError, named
from specrej.memory import format_bytes
from specrej.search.pool import Pool

_LOG = logging.getLogger("specrej.server")


@dataclass(eq=False)
class _Reading:
    prompt_ids: Sequence[int]
    num_top: int
    future: asyncio.Future[list[Likelihood]]
    """Of the event loop that waits for it; cancelled where nobody does."""


class Readings:
    """Those that wait, in the order in which they came.

    Args:
        engine: reads.
        pool: the memory that a reading shares with searches.
    """

    def __init__(self, engine: Engine, pool: Pool) -> None:
        self._engine, self._pool = engine, pool
        self._waiting: deque[_Reading] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self, prompt_ids: Sequence[int]) -> None:
        """See that a prompt can be read at all.

        Raises:
            BudgetError: its KV is more than all requests share.
        """
        needed = self._bytes(prompt_ids)
        if needed > self._pool.total_bytes:
            raise BudgetError(
                f"the prompt's tokens take {format_bytes(needed)} of KV, all requests share "
                f"{format_bytes(self._pool.total_bytes)}",
                hint="give a shorter prompt",
            )

    def add(self, prompt_ids: Sequence[int], num_top: int) -> asyncio.Future[list[Likelihood]]:
        """What will hold how likely the tokens are, or a `SpecrejError`; on an event loop."""
        future: asyncio.Future[list[Likelihood]] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(_Reading(prompt_ids, num_top, future))
        return future

    def do_next(self) -> None:
        """Read the first prompt that somebody waits for, if there is room for it."""
        with self._lock:
            while self._waiting and self._waiting[0].future.cancelled():
                self._waiting.popleft()
            if not self._waiting or self._bytes(self._waiting[0].prompt_ids) > self._free_bytes:
                return
            reading = self._waiting.popleft()
        outcome: list[Likelihood] | SpecrejError
        try:
            outcome = prompt_logprobs(self._engine, reading.prompt_ids, reading.num_top)
        except SpecrejError as error:
            outcome = error
        except Exception as error:
            _LOG.exception("a prompt could not be read")
            outcome = SpecrejError(f"a prompt could not be read: {named(error)}")
        _tell(reading.future, outcome)

    def end_all(self, error: SpecrejError) -> None:
        """Those that wait are not read any more."""
        with self._lock:
            ended, self._waiting = self._waiting, deque()
        for reading in ended:
            _tell(reading.future, error)

    @property
    def _free_bytes(self) -> int:
        return self._pool.total_bytes - self._pool.reserved_bytes

    def _bytes(self, prompt_ids: Sequence[int]) -> int:
        return self._engine.kv_bytes(len(prompt_ids), 1, 1)


def _tell(
    future: asyncio.Future[list[Likelihood]], outcome: list[Likelihood] | SpecrejError
) -> None:
    def settle() -> None:
        if future.cancelled():
            return
        if isinstance(outcome, SpecrejError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    with contextlib.suppress(RuntimeError):  # the event loop has ended
        future.get_loop().call_soon_threadsafe(settle)
