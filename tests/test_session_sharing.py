"""One session and who uses it when: calls that would meet are refused, those that share the engine
have what each has alone, and closing ends what is under way."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import Ended, Event, Result, Session, SpecrejError, Started, UsageError
from specrej.engines.base import Token
from specrej.search.events import Observer

OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "n": 6, "memory": 4000, "seed": 3}
BUSY = "another call of this session is under way"


def session(engine: FakeEngine | None = None, **how: Any) -> Session:
    return Session(model=engine or FakeEngine(), reward=FakeReward(), **{**OPTIONS, **how})


def alone(prompt: str, **how: Any) -> Result:
    return specrej.generate(prompt, model=FakeEngine(), reward=FakeReward(), **{**OPTIONS, **how})


def ids(outcome: object) -> list[list[int]]:
    assert isinstance(outcome, Result)
    return [candidate.token_ids for candidate in outcome.candidates]


class Held(FakeEngine):
    """Stands still in its first step until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stepping, self.may_go_on = threading.Event(), threading.Event()

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        self.is_stepping.set()
        assert self.may_go_on.wait(30)
        return super().step(limits)


def calls(opened: Session) -> dict[str, Callable[[], object]]:
    async def iterate() -> list[Any]:
        return [one async for one in opened.aiter_batch(["Why?"])]

    return {
        "generate": lambda: opened.generate("Why?"),
        "compare": lambda: opened.compare("Why?"),
        "generate_batch": lambda: opened.generate_batch(["Why?"]),
        "iter_batch": lambda: list(opened.iter_batch(["Why?"])),
        "agenerate": lambda: asyncio.run(opened.agenerate("Why?")),
        "aiter_batch": lambda: asyncio.run(iterate()),
    }


@pytest.mark.parametrize("call", calls(session()))
def test_a_call_beside_one_of_another_thread_is_refused(call: str) -> None:
    engine = Held()
    opened = session(engine)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(opened.generate("How?")))
    thread.start()
    assert engine.is_stepping.wait(30)
    try:
        with pytest.raises(UsageError, match=BUSY):
            calls(opened)[call]()
        with pytest.raises(UsageError, match="a call of this session is under way"):
            opened.close()
    finally:
        engine.may_go_on.set()
        thread.join()
    assert ids(results[0]) == ids(alone("How?"))
    calls(opened)[call]()
    opened.close()
    assert not engine.groups


@pytest.mark.parametrize("call", calls(session()))
def test_a_call_between_two_outcomes_of_an_iteration_changes_neither(call: str) -> None:
    engine = FakeEngine()
    with session(engine, in_flight=2) as opened:
        found = {}
        for number, outcome in opened.iter_batch(["a", "b", "c"]):
            found[number] = ids(outcome)
            calls(opened)[call]()
            assert ids(opened.generate("Why?")) == ids(alone("Why?"))
        assert found == {number: ids(alone(prompt)) for number, prompt in enumerate("abc")}
        for _ in opened.iter_batch(["a", "b", "c"]):
            break
        calls(opened)[call]()
    assert not engine.groups


def test_a_call_of_an_observer_is_refused_and_fails_its_prompt() -> None:
    with session() as opened:
        for inner in (opened.close, lambda: opened.generate("Why?")):
            with pytest.raises(UsageError, match="call of this session is under way"):
                opened.generate("Why?", observe=lambda event, inner=inner: inner())  # type: ignore[misc]
        assert ids(opened.generate("Why?")) == ids(alone("Why?"))


def test_closing_ends_an_unfinished_iteration() -> None:
    engine = FakeEngine()
    with session(engine, in_flight=2) as opened:
        batch = opened.iter_batch(["a", "b", "c"])
        next(batch)
        assert engine.groups
    assert not engine.groups
    with pytest.raises(specrej.ShutdownError, match="before the batch was complete"):
        next(batch)
    with pytest.raises(UsageError, match="the session is closed"):
        opened.iter_batch(["a"])


def test_what_was_cancelled_is_gone_when_the_next_call_begins() -> None:
    async def go() -> None:
        engine = Held()
        with session(engine) as opened:
            running = asyncio.ensure_future(opened.agenerate("Why?"))
            await asyncio.to_thread(engine.is_stepping.wait, 30)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            threading.Timer(0.05, engine.may_go_on.set).start()
            assert ids(opened.generate("How?")) == ids(alone("How?"))
            assert not engine.groups

    asyncio.run(go())


# Memory of a call


@pytest.mark.parametrize("own", [{"memory": 40_000}, {"memory": None, "max_new_tokens": 200}])
@pytest.mark.parametrize("given", [{}, {"memory": None, "max_new_tokens": 2}])
def test_an_asynchronous_call_may_need_more_memory_than_those_before(
    given: dict[str, Any], own: dict[str, Any]
) -> None:
    async def go() -> None:
        async with session(**given) as opened:
            small, large = await asyncio.gather(
                opened.agenerate("Why?"), opened.agenerate("How?" * 30, n=12, **own)
            )
            assert ids(small) == ids(alone("Why?", **given))
            assert ids(large) == ids(alone("How?" * 30, **{**given, "n": 12, **own}))
            assert [ids(one) async for _, one in opened.aiter_batch(["Who?"], **own)] == [
                ids(alone("Who?", **{**given, **own}))
            ]

    asyncio.run(go())


def test_a_batch_has_room_for_a_prompt_that_is_longer_than_was_thought() -> None:
    prompt, options = "Why?" * 60, {**OPTIONS, "memory": None, "max_new_tokens": 2}
    outcomes = dict(
        specrej.generate_batch([prompt], model=FakeEngine(), reward=FakeReward(), **options)
    )
    assert ids(outcomes[0]) == ids(alone(prompt, **options))


def test_a_total_that_was_given_is_kept() -> None:
    async def go() -> None:
        async with session(total_memory=5000) as opened:
            with pytest.raises(specrej.BudgetError, match="all prompts in flight together"):
                await opened.agenerate("Why?", memory=40_000)

    asyncio.run(go())


# Observers that raise


def ask(opened: Session, call: str, observe: Observer) -> Result:
    if call == "generate":
        return opened.generate("Why?", observe=observe)
    if call == "agenerate":

        async def wait() -> Result:
            return await opened.agenerate("Why?", observe=observe)

        return asyncio.run(wait())
    first, second = opened.generate_batch(["Why?", "How?"], observe=observe, errors="return")
    assert ids(second) == ids(alone("How?"))
    if isinstance(first, SpecrejError):
        raise first
    return first


@pytest.mark.parametrize("kind", [Started, specrej.Step, specrej.Decided, Ended])
@pytest.mark.parametrize("call", ["generate", "agenerate", "generate_batch"])
def test_an_observer_that_raises_fails_its_prompt(call: str, kind: type[Any]) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, kind) and event.prompt == 0:
            raise ValueError("mine")

    engine = FakeEngine()
    with session(engine) as opened:
        said = rf"the observer failed on {kind.__name__}: ValueError\('mine'\)"
        with pytest.raises(SpecrejError, match=said) as caught:
            ask(opened, call, observe)
        assert isinstance(caught.value.__cause__, ValueError)
        assert ids(opened.generate("Why?")) == ids(alone("Why?"))
        assert not engine.groups


def test_the_last_event_of_a_prompt_is_its_outcome() -> None:
    async def go() -> None:
        async with session() as opened:
            events: list[Event] = []
            result = await opened.agenerate("Why?", observe=events.append)
            assert isinstance(events[0], Started)
            assert [event.outcome for event in events if isinstance(event, Ended)] == [result]
            assert isinstance(events[-1], Ended)

    asyncio.run(go())
