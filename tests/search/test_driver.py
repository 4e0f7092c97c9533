"""The thread that runs searches as they come: whatever is raised on it, those that wait are told,
what they held is free, and the next are served."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import Policy, Result, Session, SpecrejError
from specrej.engines.base import Token
from specrej.search.algorithms import Steps
from specrej.search.policies import never
from specrej.search.view import SearchView
from specrej.types import Prompt, Standing

OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "n": 4, "memory": 4000}
KINDS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, ValueError]
PLACES = ["algorithm", "first", "call", "when", "keep", "step", "encode", "close"]


def raising(place: str, kind: type[BaseException]) -> dict[str, Any]:
    """Options of a call that raises there."""

    def fail(*_: object) -> Any:
        raise kind

    def algorithm(search: SearchView, n: int | None, policy: Policy) -> Steps:
        search.start(4)
        yield never
        fail()

    def first(search: SearchView, n: int | None, policy: Policy) -> Steps:
        fail()
        yield never

    def keep(standing: Standing) -> list[bool]:
        return [True] * len(standing.scores)

    options: dict[str, dict[str, Any]] = {
        "algorithm": {"algorithm": algorithm},
        "first": {"algorithm": first},
        "call": {"algorithm": fail},
        "when": {"policy": Policy(fail, keep, None)},
        "keep": {"policy": Policy(never, fail, None)},
    }
    return options.get(place, {})


class Faulty(FakeEngine):
    """Raises once, at one of its calls."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        super().__init__()
        self.place, self.kind = place, kind

    def _pass(self, place: str) -> None:
        if self.place == place:
            self.place = ""
            raise self.kind

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        self._pass("step")
        return super().step(limits)

    def encode(self, prompt: Prompt) -> list[int]:
        self._pass("encode")
        return super().encode(prompt)

    def close(self, prompt: int) -> None:
        super().close(prompt)
        self._pass("close")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_raised_those_that_wait_are_told_and_the_next_are_served(
    kind: type[BaseException], place: str
) -> None:
    async def go() -> None:
        engine = Faulty(place, kind)
        async with Session(model=engine, reward=FakeReward(), **OPTIONS) as opened:
            with pytest.raises(SpecrejError):
                await asyncio.wait_for(opened.agenerate("Why?", **raising(place, kind)), 30)
            result = await asyncio.wait_for(opened.agenerate("Why?"), 30)
            assert isinstance(result, Result)
            assert not engine.groups

    asyncio.run(go())


@pytest.mark.parametrize("place", PLACES[:5])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_on_the_callers_thread_only_a_keyboard_interrupt_is_one(
    kind: type[BaseException], place: str
) -> None:
    engine = FakeEngine()
    expected: type[BaseException] = SpecrejError
    if kind is KeyboardInterrupt:  # before it begins there is nothing to carry
        expected = KeyboardInterrupt if place == "call" else specrej.Interrupted
    with pytest.raises(expected):
        specrej.generate(
            "Why?", model=engine, reward=FakeReward(), **OPTIONS, **raising(place, kind)
        )
    assert not engine.groups


@pytest.mark.parametrize("place", PLACES[:5])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_what_its_own_code_raises_is_no_concern_of_a_prompts_neighbours(
    kind: type[BaseException], place: str
) -> None:
    async def go() -> None:
        engine = FakeEngine(eos=0.0)
        async with Session(model=engine, reward=FakeReward(), **OPTIONS) as opened:
            calls = [opened.agenerate("Why?"), opened.agenerate("How?", **raising(place, kind))]
            one, other = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(one, Result)
            assert isinstance(other, SpecrejError)

    asyncio.run(go())


def test_a_step_that_fails_is_no_concern_of_those_that_have_not_begun() -> None:
    async def go() -> None:
        engine = Faulty("step", SystemExit)
        async with Session(model=engine, reward=FakeReward(), in_flight=1, **OPTIONS) as opened:
            outcomes = await asyncio.gather(
                *(opened.agenerate("Why?") for _ in range(3)), return_exceptions=True
            )
            assert [type(one) for one in outcomes] == [specrej.EngineError, Result, Result]
            assert not engine.groups

    asyncio.run(go())


def test_a_session_that_is_closed_tells_those_that_wait() -> None:
    async def go() -> None:
        engine = FakeEngine(eos=0.0, context_tokens=10**6)
        opened = Session(
            model=engine, reward=FakeReward(), n=2, max_new_tokens=100_000, in_flight=2
        )
        has_begun = asyncio.Event()
        running = [
            asyncio.ensure_future(opened.agenerate("Why?", observe=lambda _: has_begun.set()))
            for _ in range(3)
        ]
        await has_begun.wait()
        await asyncio.to_thread(opened.close)
        for one in running:
            with pytest.raises(specrej.ShutdownError, match="the session was closed"):
                await one
        assert not engine.groups

    asyncio.run(go())
