"""Clients that vanish in every phase, rewards that raise or hang, a full queue, deadlines: each
costs only its own."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from live import (
    PATIENCE_S,
    SETTINGS,
    ForgetfulReward,
    MovedClock,
    Stalling,
    connect,
    serving,
)

import specrej
from fakes import FakeEngine, FakeReward, FakeSession, by_hash
from specrej.engines.base import Token
from specrej.types import Continuation, Message


@pytest.mark.parametrize("most_bytes", [0, 5, 60, 120, None])
def test_clients_that_go_before_the_first_byte(most_bytes: int | None) -> None:
    async def go() -> None:
        engine = FakeEngine()
        async with serving(engine) as served:
            for seed in range(10):
                body = {"prompt": "x" * 40, "seed": seed}
                (await connect(served, "/v1/completions", body, most_bytes=most_bytes)).reset()
            assert (await served.ask({"prompt": "a"})).status_code == 200
            if most_bytes is not None:
                assert engine.num_prefills == 1, "half a request was begun"

    asyncio.run(go())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_clients_that_go_while_they_wait_are_never_begun(is_streamed: bool) -> None:
    async def go() -> None:
        engine = Stalling()
        async with serving(engine, in_flight=1) as served:
            first = asyncio.create_task(served.ask({"prompt": "first"}))
            await served.until(engine.is_there.is_set, "it never ran")
            waiting = [
                await connect(
                    served, "/v1/completions", {"prompt": f"{number}", "stream": is_streamed}
                )
                for number in range(5)
            ]
            last = asyncio.create_task(served.ask({"prompt": "last"}))
            await served.until(lambda: served.service.num_waiting == 6, "they do not wait")
            calls = served.service._calls  # each who leaves is one, and the thread stands still
            before = calls.qsize()
            for connection in waiting:
                connection.reset()
            await served.until(lambda: calls.qsize() >= before + 5, "nobody saw them leave")
            engine.go_on.set()
            assert [(await task).status_code for task in (first, last)] == [200, 200]
            assert engine.num_prefills == 2

    asyncio.run(go())


def test_clients_that_go_while_text_comes_free_their_memory_within_a_step() -> None:
    class Gated(FakeEngine):
        """Makes twenty steps, and then each when it is let."""

        def __init__(self) -> None:
            super().__init__(eos=0.0)
            self.steps, self.is_there = threading.Semaphore(20), threading.Event()

        def step(self, limits: Any = None) -> list[Token]:
            if not self.steps.acquire(blocking=False):
                self.is_there.set()
                assert self.steps.acquire(timeout=PATIENCE_S)
            return super().step(limits)

    async def go() -> None:
        engine = Gated()
        async with serving(engine) as served:
            body = {"prompt": "a", "stream": True, "specrej": {"decide": "every:4", "keep": 1}}
            connection = await connect(served, "/v1/completions", body)
            while not re.search(
                rb'"index": 0, "text": "[^"]', await connection.reader.readuntil(b"\n\n")
            ):
                pass
            await served.until(engine.is_there.is_set, "it never ran")
            await served.hears(connection.reset)
            assert engine.groups, "it stands in a step"
            engine.steps.release()
            await served.until(lambda: not engine.groups, "it went on without anybody")
            assert engine.num_steps == 21
            engine.steps.release(1000)

    asyncio.run(go())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_clients_that_go_while_a_reward_is_asked_free_their_memory_before_it_has_said(
    is_streamed: bool,
) -> None:
    asked, release = threading.Event(), threading.Event()

    def rate(text: str) -> float:
        asked.set()
        assert release.wait(PATIENCE_S)
        return by_hash(text)

    async def go() -> None:
        engine = FakeEngine()
        async with serving(engine, ForgetfulReward(rate)) as served:
            connection = await connect(
                served, "/v1/completions", {"prompt": "a", "stream": is_streamed}
            )
            await served.until(asked.is_set, "the reward was not asked")
            assert engine.groups
            connection.reset()
            await served.until(lambda: not engine.groups, "memory is held for nobody")
            assert not release.is_set()
            release.set()
            assert (await served.ask({"prompt": "b"})).status_code == 200

    asyncio.run(go())


class PickyReward(ForgetfulReward):
    """Does something else where the prompt is "bad"."""

    def __init__(self, fault: Callable[[str], float]) -> None:
        super().__init__()
        self._fault = fault

    def open(self, messages: Sequence[Message]) -> FakeSession:
        session = super().open(messages)
        if messages[-1]["content"] == "bad":
            session.rate = self._fault
        return session


@pytest.mark.parametrize("is_hanging", [False, True])
def test_a_reward_that_fails_for_one_request_fails_that_request_only(is_hanging: bool) -> None:
    release = threading.Event()

    def fault(text: str) -> float:
        if not is_hanging:
            raise ValueError("the secret of the reward")
        assert release.wait(PATIENCE_S)
        return 1.0

    async def go() -> None:
        async with serving(FakeEngine(), PickyReward(fault), reward_timeout_s=1) as served:
            asking = [served.ask({"prompt": f"{number}", "seed": number}) for number in range(12)]
            bad = [served.ask({"prompt": "bad"}), served.ask({"prompt": "bad", "stream": True})]
            refused, broken, *answered = await asyncio.gather(*bad, *asking)
            release.set()
            assert refused.status_code == 500
            assert refused.json()["error"]["code"] == "reward_failed"
            assert json.loads(broken.text.splitlines()[-2].removeprefix("data: ")) == refused.json()
            assert "secret" not in refused.text + broken.text
            for number, response in enumerate(answered):
                options = {**SETTINGS.to_dict(), "seed": number}
                quiet = specrej.generate(
                    Continuation(f"{number}"), model=FakeEngine(), reward=FakeReward(), **options
                )
                assert response.json()["choices"][0]["text"] == quiet.text

    asyncio.run(go())


def test_a_full_queue_turns_requests_away_and_takes_them_again() -> None:
    async def go() -> None:
        engine = Stalling()
        async with serving(engine, in_flight=1, max_queue=3) as served:
            taken = [asyncio.create_task(served.ask({"prompt": "a"}))]
            await served.until(engine.is_there.is_set, "it never ran")
            taken += [asyncio.create_task(served.ask({"prompt": "b"})) for _ in range(3)]
            await served.until(lambda: served.service.num_waiting == 3, "they do not wait")
            for is_streamed in (False, True):
                refused = await served.ask({"prompt": "c", "stream": is_streamed})
                assert refused.status_code == 429
                assert int(refused.headers["Retry-After"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (await served.client.get("/health")).status_code == 200
            engine.go_on.set()
            assert [(await task).status_code for task in taken] == [200] * 4
            assert (await served.ask({"prompt": "c"})).status_code == 200

    asyncio.run(go())


def test_a_deadline_frees_the_place_of_what_runs_and_of_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MovedClock(monkeypatch)

    async def go() -> None:
        engine = Stalling(eos=0.0)
        async with serving(engine, in_flight=1) as served:
            specrej_own = {"deadline_s": 60}
            asking = [
                served.ask({"prompt": f"{n}", "specrej": specrej_own, "stream": n == 2})
                for n in range(3)
            ]
            going = asyncio.gather(*asking)
            await served.until(engine.is_there.is_set, "it never ran")
            await served.until(lambda: served.service.num_waiting == 2, "the others do not wait")
            clock.passed_s = 60.0
            engine.go_on.set()
            runs, waits, streams = await going
            assert [runs.status_code, waits.status_code, streams.status_code] == [504, 504, 200]
            assert {runs.json()["error"]["code"], waits.json()["error"]["code"]} == {"deadline"}
            assert '"code": "deadline"' in streams.text
            assert "[DONE]" not in streams.text
            assert engine.num_prefills == 1, "those that waited have not begun"
            late = await served.ask({"prompt": "a", "specrej": {"deadline_s": 60}})
            assert late.status_code == 200
            assert late.json()["specrej"]["is_late"] is False

    asyncio.run(go())
