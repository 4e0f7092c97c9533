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
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Literal, Self, Unpack

from specrej.api import (
    IN_FLIGHT,
    Observer,
    RunOptions,
    Watcher,
    check_prompts,
    check_sharing,
    combined,
    maker_of,
    open_pool,
    read_options,
    run_many,
    run_observed,
    run_three,
)
from specrej.errors import SpecrejError, UsageError
from specrej.opening import OpeningOptions
from specrej.search.driver import Driver
from specrej.search.events import Event
from specrej.search.scheduler import Outcome
from specrej.settings import Options, Settings
from specrej.types import Prompt, Result


class Session:
    """An engine and a reward that are open, and what all their runs have in common.

    The asynchronous calls share the engine on a thread of their own, many at a time; the others run
    on the thread that calls them, and not while those are under way.

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
        self._driver: Driver | None = None
        self._num_pending = 0
        self.engine, self.reward = self._opening.open()
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
        """
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        if self._is_open:
            self._is_open = False
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
        `specrej.generate_batch`.
        """
        check_prompts(prompts)
        asked = self._asked(settings, options)
        pool = open_pool(self.engine, asked, self._total_memory)
        requests = ((prompt, asked) for prompt in prompts)
        return run_many(
            self.engine,
            self.reward,
            requests,
            pool=pool,
            in_flight=self._in_flight,
            observe=observe,
        )

    def compare(
        self,
        prompt: Prompt,
        *,
        settings: Settings | None = None,
        observe: Observer | None = None,
        **options: Unpack[Options],
    ) -> dict[str, Result]:
        """See `specrej.compare`."""
        if "algorithm" in options:
            raise UsageError("compare runs both algorithms; it takes no 'algorithm'")
        asked = self._asked(settings, options)
        asked.check(prompt)
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
        self._check_open()
        if self._num_pending and not is_async:
            raise UsageError(
                "asynchronous calls of this session are under way", hint="await them before"
            )
        for name in OpeningOptions.__annotations__.keys() & options.keys():
            raise UsageError(
                f"{name} is opened with the session, a call cannot have another one",
                hint="open another session for it, or leave it out",
            )
        return combined(self.settings if settings is None else settings, options)

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the session is closed", hint="open another one")

    async def _submit(
        self, prompt: Prompt, asked: Settings, observe: Observer | None, number: int
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        watcher = Watcher(None if observe is None else partial(_hand_over, loop, observe))
        if self._driver is None:
            pool = open_pool(self.engine, self.settings, self._total_memory)
            self._driver, self._pool = Driver(self.engine, pool, in_flight=self._in_flight), pool
        maker = maker_of(self.engine, self.reward, prompt, asked, self._pool, number)
        self._num_pending += 1
        try:
            outcome = await asyncio.wrap_future(self._driver.submit(maker, watcher))
        finally:
            self._num_pending -= 1
        return watcher.end(number, outcome)


def _hand_over(loop: asyncio.AbstractEventLoop, observe: Observer, event: Event) -> None:
    """Have an observer called on its event loop."""
    loop.call_soon_threadsafe(observe, event)
