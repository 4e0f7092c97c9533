"""Model and reward, opened once, for any number of prompts.

    with Session(model="smollm2", reward="relevance") as session:
        result = session.generate("Why is the sky blue?", n=16)
        results = session.generate_batch(["Name a fruit.", "Name a tree."])  # a list in their order

In a program that has an event loop, many callers share the engine:

    result = await session.agenerate("Why is the sky blue?")
    async for number, outcome in session.aiter_batch(prompts):
        print(number, outcome)

All of it is freed when the block ends.
"""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Literal, Self, Unpack

from specrej.api import IN_FLIGHT, RunRequest, open_pool, prepare, run_many, run_observed, run_three
from specrej.arguments import (
    RunOptions,
    check_compared,
    check_prompts,
    check_sharing,
    combined,
    read_options,
)
from specrej.errors import ShutdownError, SpecrejError, UsageError
from specrej.opening import OpeningOptions
from specrej.search.algorithms import Steps
from specrej.search.budget import Total
from specrej.search.driver import Driver
from specrej.search.events import Event, Observer, Watcher, tell
from specrej.search.pool import Pool
from specrej.search.scheduler import Outcome
from specrej.search.search import Search
from specrej.settings import Options, Settings
from specrej.types import Prompt, Result


class Session:
    """An engine and a reward that are open, and what all their runs have in common.

    The asynchronous calls share the engine on a thread of their own, many at a time. The others run
    on the thread that calls them, one at a time, and not while those are under way: such a call is
    refused with a UsageError.

    Args:
        settings: how answers are sampled and chosen where a call says nothing else.
        total_memory: KV of all prompts in flight together; see `generate_batch`.
        in_flight: most prompts side by side.
        options: what is opened, and single settings: see `specrej.generate`.

    Raises:
        UsageError: an argument that cannot be honoured.
        ModelError: the model cannot be opened.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        total_memory: str | int | None = None,
        in_flight: int = IN_FLIGHT,
        **options: Unpack[RunOptions],
    ) -> None:
        self._opening, self.settings = read_options(options, settings)
        check_sharing(total_memory, in_flight)
        self._total_memory, self._in_flight = total_memory, in_flight
        self._lock = Lock()
        """Of what says who uses the engine: the next five."""
        self._driver: Driver | None = None
        self._pool: Pool | None = None
        self._num_pending = 0
        self._is_busy = False
        self._batches = set[Generator[tuple[int, Outcome], None, None]]()
        """Those of `iter_batch` that have begun and wait to be asked for their next outcome."""
        self._totals: dict[tuple[int | None, int], Total] = {}
        self.engine, self.reward = self._opening.open([self.settings])
        self._is_open = True

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End what is under way, and free what was opened here; objects that were handed in are
        left as they are.

        Asynchronous calls, and an `iter_batch` that is asked for its next outcome, get a
        ShutdownError.

        Raises:
            UsageError: a call of this session is running, on this thread or another.
        """
        with self._lock:
            batches, driver = self._batches, self._driver
            if self._is_busy:
                raise UsageError(
                    "a call of this session is under way", hint="close the session after its end"
                )
            was_open, self._is_open, self._driver = self._is_open, False, None
        for batch in list(batches):
            batch.close()
        if driver is not None:
            driver.close()
        if was_open:
            self._opening.close(self.engine, self.reward)

    def generate(
        self,
        prompt: Prompt,
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """See `specrej.generate`."""
        asked = self._asked(settings, options)
        with self._alone():
            return run_observed(self.engine, self.reward, prompt, asked, observe)

    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        errors: Literal["raise", "return"] = "raise",
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """The outcomes of many prompts, side by side, as a list in their order.

        Args:
            prompts: texts or conversations.
            errors: "raise" the first error of a prompt, or "return" it in the place of its result.
            settings: see `specrej.generate`.
            observe: see `specrej.generate_batch`.
            options: see `specrej.Settings`.

        Raises:
            SpecrejError: a prompt failed, and errors are raised; the others in flight are ended.
        """
        if errors not in ("raise", "return"):
            raise UsageError(f"errors must be 'raise' or 'return', got {errors!r}")
        outcomes: dict[int, Outcome] = {}
        for number, outcome in self.iter_batch(
            prompts, settings=settings, observe=observe, **options
        ):
            if errors == "raise" and isinstance(outcome, SpecrejError):
                raise outcome
            outcomes[number] = outcome
        return [outcomes[number] for number in range(len(outcomes))]

    def iter_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of many prompts with their numbers, as they end; see
        `specrej.generate_batch`. Between two of them the session may make other calls.
        """
        check_prompts(prompts)
        asked = self._asked(settings, options)
        pool = open_pool(self.engine, asked, self._total_memory)
        return self._iterate(prompts, asked, pool, observe)

    def compare(
        self,
        prompt: Prompt,
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> dict[str, Result]:
        """See `specrej.compare`."""
        check_compared(options)
        asked = self._asked(settings, options)
        asked.check(prompt)
        with self._alone():
            return run_three(self.engine, self.reward, prompt, asked, observe)

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """`generate` for an event loop: awaited many times at once, the prompts share the engine.

        When it is cancelled, the prompt's memory is free within a step. `observe` is called on the
        event loop.

        Raises:
            SpecrejError: the prompt failed.
        """
        outcome = await self._submit(
            prompt, self._asked(settings, options, is_async=True), observe, 0
        )
        if isinstance(outcome, SpecrejError):
            raise outcome
        return outcome

    async def aiter_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[tuple[int, Outcome]]:
        """`iter_batch` for an event loop. Prompts are taken as there is room; what is left is
        cancelled on closing.
        """
        asked = self._asked(settings, options, is_async=True)
        check_prompts(prompts)
        numbered, running = enumerate(prompts), dict[asyncio.Task[Outcome], int]()
        try:
            while True:
                while len(running) < self._in_flight and (one := next(numbered, None)) is not None:
                    running[asyncio.ensure_future(self._submit(one[1], asked, observe, one[0]))] = (
                        one[0]
                    )
                if not running:
                    return
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    yield running.pop(task), task.result()
        finally:
            for task in running:
                task.cancel()

    # How

    def _asked(
        self, settings: Settings | None, options: Options, *, is_async: bool = False
    ) -> Settings:
        """The settings of a call, which is one that may be made now."""
        self._check(is_async=is_async)
        for name in OpeningOptions.__annotations__.keys() & options.keys():
            raise UsageError(
                f"{name} is opened with the session, a call cannot have another one",
                hint="open another session for it, or leave it out",
            )
        return combined(self.settings if settings is None else settings, options)

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the session is closed", hint="open another one")

    def _check(self, *, is_async: bool) -> None:
        self._check_open()
        if self._is_busy:
            raise UsageError(
                "another call of this session is under way",
                hint="wait for its end; agenerate answers prompts side by side, and each thread "
                "may have a session of its own",
            )
        if self._num_pending and not is_async:
            raise UsageError(
                "asynchronous calls of this session are under way", hint="await them before"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A call that nothing else on this session runs beside."""
        with self._lock:
            self._check(is_async=False)
            self._is_busy = True
        try:
            if self._driver is not None:  # of a call that was cancelled it may hold something still
                self._driver.settle()
            yield
        finally:
            self._is_busy = False

    def _iterate(
        self, prompts: Iterable[Prompt], asked: Settings, pool: Pool, observe: Observer | None
    ) -> Iterator[tuple[int, Outcome]]:
        batch = run_many(
            self.engine,
            self.reward,
            (RunRequest(prompt, asked) for prompt in prompts),
            pool=pool,
            in_flight=self._in_flight,
            observe=observe,
        )
        self._batches.add(batch)
        try:
            while self._is_open:
                with self._alone():
                    outcome = next(batch, None)
                if outcome is None:
                    return
                yield outcome
            raise ShutdownError("the session was closed before the batch was complete")
        finally:
            self._batches.discard(batch)
            batch.close()

    async def _submit(
        self, prompt: Prompt, asked: Settings, observe: Observer | None, number: int
    ) -> Outcome:
        loop, failures = asyncio.get_running_loop(), list[SpecrejError]()

        def tell_here(event: Event) -> None:
            """On the event loop: what fails here ends the prompt, as it does on one thread."""
            assert observe is not None
            if failures:
                return
            try:
                tell(observe, event)
            except SpecrejError as error:
                failures.append(error)
                with suppress(InvalidStateError):
                    future.set_result(error)

        def hand_over(event: Event) -> None:
            loop.call_soon_threadsafe(tell_here, event)

        with self._lock:
            self._check(is_async=True)
            watcher = Watcher(None if observe is None else hand_over)
            future = self._start(prompt, asked, watcher, number)
            self._num_pending += 1
        try:
            outcome = await asyncio.wrap_future(future)
        finally:
            future.cancel()  # where an event loop ended, nobody else does
            with self._lock:
                self._num_pending -= 1
        return Watcher(observe).end(number, failures[0] if failures else outcome)

    def _start(
        self, prompt: Prompt, asked: Settings, watcher: Watcher, number: int
    ) -> "Future[Outcome]":
        """Have the driver answer a prompt, in a pool as large as the call would have it."""
        if self._driver is None or self._pool is None:
            self._pool = Pool(self._total_of(asked).bytes, grows=self._total_memory is None)
            self._driver = Driver(self.engine, self._pool, in_flight=self._in_flight)
        pool = self._pool

        def make() -> tuple[Search, Steps]:
            total = self._total_of(asked)
            made = prepare(self.engine, self.reward, prompt, asked, total, number)
            pool.grow(total.bytes)
            return made

        return self._driver.submit(make, watcher)

    def _total_of(self, asked: Settings) -> Total:
        """The memory that a call alone would share out. An engine's choice is asked for once: it
        may depend on what is free.
        """
        key = asked.memory_bytes, asked.max_new_tokens
        if key not in self._totals:
            self._totals[key] = open_pool(self.engine, asked, self._total_memory).total
        return self._totals[key]
