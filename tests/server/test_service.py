"""Requests on one engine: each as if alone, told what happens, and gone without a trace when nobody
wants it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from live import MovedClock

import specrej
from endpoint import until
from fakes import FakeEngine, FakeReward, FakeSession, by_hash
from specrej.errors import (
    BudgetError,
    DeadlineError,
    QueueFullError,
    RewardError,
    ShutdownError,
    SpecrejError,
)
from specrej.search.events import Decided, Ended, Queued, Started, Step, Text, payload_of
from specrej.search.pool import Pool
from specrej.server.service import Service, StreamEvent, Ticket
from specrej.settings import Settings
from specrej.types import Result

SETTINGS = Settings(n=12, max_new_tokens=30, min_tokens=5, memory=6000)


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None, reward: Any = None, total_bytes: int = 30_000, **options: Any
) -> AsyncIterator[Service]:
    service = Service(engine or FakeEngine(), reward or FakeReward(), Pool(total_bytes), **options)
    service.start()
    try:
        yield service
    finally:
        await service.stop(0)


def submit(
    service: Service, prompt: str = "Why?", deadline_s: float = 60, **options: Any
) -> Ticket:
    settings = Settings(**{**SETTINGS.to_dict(), **options})
    return service.submit(prompt, settings, deadline_s=deadline_s, is_watched=True)


async def collect(ticket: Ticket) -> list[StreamEvent]:
    return [event async for event in ticket]


async def outcome_of(ticket: Ticket) -> Result | SpecrejError:
    last = (await collect(ticket))[-1]
    assert isinstance(last, Ended)
    return last.outcome


def test_many_requests_at_once_have_the_answers_they_have_alone() -> None:
    async def run() -> list[Result | SpecrejError]:
        engine = FakeEngine(total_bytes=30_000)
        async with serving(engine) as service:
            tickets = [submit(service, f"Prompt {number}", seed=number) for number in range(40)]
            outcomes = await asyncio.gather(*map(outcome_of, tickets))
            assert not engine.groups
            assert (service.num_active, service.num_waiting) == (0, 0)
            while service.kv_bytes:  # as of the last step
                await asyncio.sleep(0.01)
        return outcomes

    for number, outcome in enumerate(asyncio.run(run())):
        assert isinstance(outcome, Result)
        options = {**SETTINGS.to_dict(), "seed": number}
        alone = specrej.generate(
            f"Prompt {number}", model=FakeEngine(), reward=FakeReward(), **options
        )
        assert outcome.candidates == alone.candidates
        assert outcome.best == alone.best


@pytest.mark.parametrize("stop", [[], ["bbc"], ["ddd", "cdcd"]])
def test_text_that_is_told_early_is_that_of_the_answer(stop: list[str]) -> None:
    async def run() -> list[list[StreamEvent]]:
        async with serving(FakeEngine(eos=0.02)) as service:
            tickets = [
                submit(service, seed=seed, stop=stop, decide="every:3", alpha=0.7)
                for seed in range(30)
            ]
            return await asyncio.gather(*map(collect, tickets))

    num_early = 0
    for events in asyncio.run(run()):
        end = events[-1]
        assert isinstance(end, Ended)
        assert isinstance(end.outcome, Result)
        told = "".join(event.delta for event in events if isinstance(event, Text))
        assert end.outcome.text.startswith(told)
        num_early += bool(told)
    assert num_early > 10, "in most races one is left before it ends"


def test_no_text_is_told_while_somebody_could_still_win() -> None:
    async def run() -> None:
        async with serving(FakeEngine(eos=0.1)) as service:
            for seed in range(20):
                events = await collect(submit(service, seed=seed, alpha=0.3, decide="every:5"))
                end = events[-1]
                assert isinstance(end, Ended)
                assert isinstance(end.outcome, Result)
                left = [c for c in end.outcome.candidates if c.state != "rejected"]
                if len(left) > 1:
                    assert not [event for event in events if isinstance(event, Text)]

    asyncio.run(run())


def test_progress_tells_of_every_decision_and_everyone_in_it() -> None:
    async def run() -> list[StreamEvent]:
        async with serving() as service:
            return await collect(submit(service, decide="every:5"))

    events = asyncio.run(run())
    end = events[-1]
    assert isinstance(end, Ended)
    assert isinstance(end.outcome, Result)
    told = [
        payload_of(event)
        for event in events
        if isinstance(event, Queued | Started | Step | Decided)
    ]
    assert [payload["kind"] for payload in told[:2]] == ["queued", "started"]
    assert told[1]["num_candidates"] == 12
    decisions = [payload for payload in told if payload["kind"] == "decision"]
    assert len(decisions) == len(end.outcome.decisions) > 1
    for payload, decision in zip(decisions, end.outcome.decisions, strict=True):
        assert [one["index"] for one in payload["candidates"]] == list(decision.scored)
        rejected = tuple(
            one["index"] for one in payload["candidates"] if one["state"] == "rejected"
        )
        assert rejected == decision.rejected
        assert payload["cut"] == decision.cut
        for one in payload["candidates"]:
            assert one["reward"] == end.outcome.candidates[one["index"]].rewards[payload["number"]]
    assert decisions[-1]["best"] == end.outcome.best.index
    assert decisions[-1]["text"] == end.outcome.text


def test_too_many_requests_are_turned_away_and_told_when_to_come_back() -> None:
    async def run() -> None:
        engine = Stalling()
        async with serving(engine, in_flight=1, max_queue=2) as service:
            first = submit(service)
            await engine.reached()
            waiting = [submit(service) for _ in range(2)]
            with pytest.raises(QueueFullError) as caught:
                submit(service)
            assert caught.value.retry_after_s >= 1
            engine.go_on.set()
            for ticket in (first, *waiting):
                assert isinstance(await outcome_of(ticket), Result)
            submit(service).cancel()

    asyncio.run(run())


class Stalling(FakeEngine):
    """Stands still in its third step until it may go on."""

    def __init__(self) -> None:
        super().__init__(eos=0.0)
        self.go_on = threading.Event()
        self._is_there = threading.Event()

    def step(self, limits: Any = None) -> Any:
        if self.num_steps == 2:
            self._is_there.set()
            assert self.go_on.wait(120)
        return super().step(limits)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._is_there.wait, 10)


def test_a_request_that_nobody_waits_for_is_gone_after_the_step() -> None:
    async def run() -> None:
        engine = Stalling()
        async with serving(engine, in_flight=2) as service:
            unwanted, wanted, never_begun = (
                submit(service),
                submit(service, seed=1),
                submit(service, seed=2),
            )
            await engine.reached()
            assert len(engine.groups) == 2
            unwanted.cancel()
            never_begun.cancel()
            unwanted.cancel()
            num_before = engine.num_steps
            engine.go_on.set()
            assert isinstance(await outcome_of(wanted), Result)
            assert engine.num_prefills == 2, "the one that waited never began"
            assert engine.num_steps - num_before == 30 - 2
            alone = 12 + 12 + 12  # what the unwanted one drew in three steps
            assert engine.num_drawn < 2 * alone + 30 * 12
            assert (service.num_active, service.num_waiting, len(engine.groups)) == (0, 0, 0)

    asyncio.run(run())


def test_a_deadline_gives_the_best_complete_candidate_or_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MovedClock(monkeypatch)

    class Slow(FakeEngine):
        def step(self, limits: Any = None) -> Any:
            clock.passed_s += 60.0
            return super().step(limits)

    async def run(eos: float) -> Ended:
        engine = Slow(eos=eos, context_tokens=4000)
        async with serving(engine, total_bytes=10**7) as service:
            events = await collect(
                submit(
                    service, deadline_s=40 * 60, max_new_tokens=2000, memory=10**6, n=4, alpha=0.0
                )
            )
            assert not engine.groups
            assert isinstance(events[-1], Ended)
            return events[-1]

    late = asyncio.run(run(eos=0.05))
    assert late.is_late
    assert isinstance(late.outcome, Result)
    assert late.outcome.best.state == "complete"
    none = asyncio.run(run(eos=0.0))
    assert none.is_late
    assert isinstance(none.outcome, DeadlineError)


class PickyReward(FakeReward):
    """Does something to one prompt's scores, as a fault does."""

    def __init__(self, fault: Callable[[], None]) -> None:
        super().__init__(by_hash)
        self._fault = fault

    def open(self, messages: Any) -> FakeSession:
        session = super().open(messages)
        if messages[-1]["content"] == "bad":
            session.rate = self._fail
        return session

    def _fail(self, text: str) -> float:
        self._fault()
        return 1.0


def raise_error() -> None:
    raise ValueError("no idea")


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_a_reward_that_fails_for_one_request_fails_no_other(fault: str) -> None:
    async def run() -> None:
        release = threading.Event()
        reward = PickyReward(raise_error if fault == "raises" else lambda: assert_set(release))
        engine = FakeEngine(eos=0.0)
        async with serving(engine, reward, reward_timeout_s=1) as service:
            good = [submit(service, seed=seed) for seed in range(4)]
            bad = submit(service, "bad")
            more = [submit(service, seed=seed) for seed in range(4, 8)]
            outcome = await outcome_of(bad)
            assert isinstance(outcome, RewardError)
            assert ("no idea" if fault == "raises" else "gave no scores") in str(outcome)
            for ticket in (*good, *more):
                assert isinstance(await outcome_of(ticket), Result)
            release.set()
            assert not engine.groups

    asyncio.run(run())


def assert_set(event: threading.Event) -> None:
    assert event.wait(120)


def test_the_engines_failure_fails_what_was_in_flight_and_the_next_request_is_served() -> None:
    async def run() -> None:
        engine = FakeEngine(eos=0.0, fail_at={3}, error=RuntimeError("CUDA error"))
        async with serving(engine, in_flight=2) as service:
            tickets = [submit(service, seed=seed) for seed in range(4)]
            outcomes = [await outcome_of(ticket) for ticket in tickets]
            failed = [outcome for outcome in outcomes if isinstance(outcome, SpecrejError)]
            assert 1 <= len(failed) <= 2
            assert all("CUDA error" in str(error) for error in failed)
            assert sum(isinstance(outcome, Result) for outcome in outcomes) == 4 - len(failed)
            assert not engine.groups

    asyncio.run(run())


def test_a_request_that_cannot_be_honoured_is_told_so() -> None:
    async def run() -> None:
        async with serving() as service:
            assert isinstance(await outcome_of(submit(service, memory=100)), BudgetError)
            assert isinstance(await outcome_of(submit(service, memory=10**9)), BudgetError)
            assert isinstance(await outcome_of(submit(service)), Result)

    asyncio.run(run())


@pytest.mark.parametrize("grace_s", [0.0, 20.0])
def test_stopping_lets_requests_end_or_tells_them(grace_s: float) -> None:
    async def run() -> None:
        engine = Stalling()
        service = Service(engine, FakeReward(), Pool(30_000), in_flight=1)
        service.start()
        running, waiting = submit(service), submit(service, seed=1)
        await engine.reached()
        stopping = asyncio.create_task(service.stop(grace_s))
        await asyncio.sleep(0.05)
        with pytest.raises(ShutdownError):
            submit(service)
        engine.go_on.set()
        await stopping
        kind = Result if grace_s else ShutdownError
        assert [isinstance(await outcome_of(ticket), kind) for ticket in (running, waiting)] == [
            True,
            True,
        ]
        assert not engine.groups

    asyncio.run(run())


def test_a_stopped_service_leaves_no_thread_behind() -> None:
    async def run() -> None:
        async with serving() as service:
            await outcome_of(submit(service))

    before = set(threading.enumerate())
    asyncio.run(run())
    until(
        lambda: (
            not [
                thread for thread in set(threading.enumerate()) - before if "specrej" in thread.name
            ]
        )
    )
