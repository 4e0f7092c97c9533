"""The thread that decodes: whatever is raised on it fails those it concerns; if it cannot go on,
the server ends."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from live import PATIENCE_S, SETTINGS, TOTAL_BYTES, ForgetfulReward, serving

from fakes import FakeEngine, FakeSession
from specrej.engines.base import Token
from specrej.errors import EngineError
from specrej.search.pool import Pool
from specrej.server import running
from specrej.server.app import make_app
from specrej.server.running import bound, run
from specrej.server.service import Service
from specrej.types import Candidate, Message, Prompt


class Panic(BaseException):
    """As a tokenizer written in Rust raises it."""


KINDS = [SystemExit, KeyboardInterrupt, Panic, asyncio.CancelledError, StopIteration, ValueError]


class Faulty(ForgetfulReward):
    """Raises where a prompt is "bad": as it is opened, asked, or closed."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        super().__init__()
        self._place, self._kind = place, kind

    def open(self, messages: Sequence[Message]) -> FakeSession:
        is_bad = messages[-1]["content"] == "bad"
        if is_bad and self._place == "open":
            raise self._kind("as asked for")
        session = super().open(messages)
        if is_bad and self._place in ("score", "drop", "close"):
            whole = getattr(session, self._place)

            def failing(*given: Any) -> Any:
                whole(*given)
                raise self._kind("as asked for")

            setattr(session, self._place, failing)
        return session


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["open", "score", "drop", "close"])
def test_whatever_a_reward_raises_fails_its_own_request_alone(
    place: str, kind: type[BaseException]
) -> None:
    async def go() -> None:
        reward = Faulty(place, kind)
        async with serving(FakeEngine(), reward) as served:
            others = [served.ask({"prompt": f"{seed}", "seed": seed}) for seed in range(4)]
            bad, *answers = await asyncio.gather(served.ask({"prompt": "bad"}), *others)
            assert [answer.status_code for answer in answers] == [200] * len(answers)
            assert bad.status_code == (200 if place == "close" else 500), bad.text
            assert (await served.ask({"prompt": "next"})).status_code == 200
            assert (await served.client.get("/health")).status_code == 200

    asyncio.run(go())


def test_scores_that_come_lazily_are_computed_where_the_rewards_time_is_taken() -> None:
    threads: list[str] = []

    class Lazy(ForgetfulReward):
        def open(self, messages: Sequence[Message]) -> FakeSession:
            session = super().open(messages)
            score = session.score

            def scored(candidates: Sequence[Candidate]) -> Iterator[float]:
                threads.append(threading.current_thread().name)
                yield from score(candidates)

            session.score = scored  # type: ignore[method-assign, assignment]
            return session

    async def go() -> None:
        async with serving(FakeEngine(), Lazy()) as served:
            assert (await served.ask({"prompt": "Why?"})).status_code == 200

    asyncio.run(go())
    assert set(threads) == {"specrej-reward"}


def code_of(refused: httpx.Response) -> str:
    code: str = refused.json()["error"]["code"]
    return code


class Sick(FakeEngine):
    """Raises once, or always, in one of its methods."""

    def __init__(self, place: str, kind: type[BaseException], times: int = 1) -> None:
        super().__init__()
        self.times = times
        whole = getattr(self, place)

        def failing(*given: Any) -> Any:
            if self.times and (place != "encode" or "bad" in str(given)):
                self.times -= 1
                raise kind("as asked for")
            return whole(*given)

        setattr(self, place, failing)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", ["encode", "open", "add", "step", "drop", "detokenizer", "memory", "demand"]
)
def test_whatever_the_engine_raises_is_over_with_those_in_flight(
    place: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        engine = Sick(place, kind)
        async with serving(engine) as served:
            failed = await served.ask({"prompt": "bad", "specrej": {"decide": "every:3"}})
            assert (failed.status_code, code_of(failed)) == (502, "engine_failed"), failed.text
            assert not engine.times
            assert (await served.ask({"prompt": "next"})).status_code == 200
            assert not served.service.has_failed

    asyncio.run(go())
    assert [record for record in caplog.records if record.exc_info], "it is logged"


def test_a_prompt_that_the_engine_cannot_read_when_its_turn_comes_is_told_so() -> None:
    class Once(FakeEngine):
        """Reads a prompt at the desk, and not on the thread."""

        def encode(self, prompt: Prompt) -> list[int]:
            if threading.current_thread().name == "specrej-engine" and "bad" in str(prompt):
                raise Panic
            return super().encode(prompt)

    async def go() -> None:
        async with serving(Once()) as served:
            assert (await served.ask({"prompt": "bad"})).status_code == 502
            assert (await served.ask({"prompt": "good"})).status_code == 200

    asyncio.run(go())


class Running:
    """A server that is expected to end by itself."""

    def __init__(self, engine: FakeEngine, patience_s: float = 60.0, **options: Any) -> None:
        self.service = Service(engine, ForgetfulReward(), Pool(TOTAL_BYTES), **options)
        self.ready = asyncio.Event()
        self._patience_s = patience_s

    async def go(self, ask: Callable[[httpx.AsyncClient], Any]) -> Any:
        """What `ask` comes to; the server must have failed by itself by then."""
        with bound("127.0.0.1", 0) as listener:
            app = make_app(self.service, model="bytes", defaults=SETTINGS)
            given: dict[str, Any] = {
                "grace_s": 0,
                "on_ready": self.ready.set,
                "patience_s": self._patience_s,
            }
            serving = asyncio.create_task(run(app, self.service, listener, **given))
            await self.ready.wait()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                said = await ask(client)
            with pytest.raises(EngineError, match="has failed"):
                await serving
            return said


BODY = {"model": "bytes", "prompt": "Why?"}


def test_kv_that_cannot_be_freed_ends_the_server_and_all_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        asking = [client.post("/v1/completions", json={**BODY, "seed": seed}) for seed in range(4)]
        answers = await asyncio.gather(*asking)
        # Who comes when it has failed already is told so.
        assert 500 in {answer.status_code for answer in answers} <= {200, 500, 503}
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        assert (await client.post("/v1/completions", json=BODY)).status_code == 503

    async def go() -> None:
        await Running(Sick("close", RuntimeError)).go(ask)

    with caplog.at_level(logging.CRITICAL, "specrej.server"):
        asyncio.run(go())
    assert "the thread that decodes has failed" in caplog.text


@pytest.mark.parametrize("place", ["open", "add", "step"])
def test_an_engine_that_fails_again_and_again_ends_the_server(place: str) -> None:
    async def ask(client: httpx.AsyncClient) -> list[int]:
        return [(await client.post("/v1/completions", json=BODY)).status_code for _ in range(11)]

    async def go() -> list[int]:
        statuses: list[int] = await Running(Sick(place, RuntimeError, times=99)).go(ask)
        return statuses

    assert asyncio.run(go()) == [502] * 10 + [503]


def test_a_thread_that_stands_still_ends_the_server() -> None:
    go_on = threading.Event()

    class Still(FakeEngine):
        def step(self, limits: Any = None) -> list[Token]:
            assert go_on.wait(PATIENCE_S)
            return super().step(limits)

    async def ask(client: httpx.AsyncClient) -> list[int]:
        bodies = [BODY, {**BODY, "seed": 1}, {**BODY, "stream": True}]
        whole, other, stream = await asyncio.gather(
            *(client.post("/v1/completions", json=body) for body in bodies)
        )
        assert '"code": "internal"' in stream.text
        return [whole.status_code, other.status_code, (await client.get("/health")).status_code]

    async def go() -> list[int]:
        statuses: list[int] = await Running(Still(), patience_s=2).go(ask)
        return statuses

    try:
        assert asyncio.run(go()) == [500, 500, 503]
    finally:
        go_on.set()


def test_a_thread_with_nothing_to_do_does_not_stand_still() -> None:
    async def go() -> None:
        async with serving(FakeEngine()) as served:
            await served.ask({"prompt": "a"})
            await served.until(lambda: served.service.still_s == 0, "it waits for work")
            await asyncio.sleep(0.05)
            assert served.service.still_s == 0

    asyncio.run(go())


def test_stopping_does_not_wait_for_a_thread_that_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from specrej.server import service as module

    monkeypatch.setattr(module, "_LAST_WORDS_S", 0.1)
    go_on, is_there = threading.Event(), threading.Event()

    class Still(FakeEngine):
        def step(self, limits: Any = None) -> list[Token]:
            is_there.set()
            assert go_on.wait(PATIENCE_S)
            return super().step(limits)

    async def go() -> None:
        service = Service(Still(), ForgetfulReward(), Pool(TOTAL_BYTES))
        service.start()
        service.submit("Why?", SETTINGS, deadline_s=60, is_watched=False)
        assert await asyncio.to_thread(is_there.wait, PATIENCE_S)
        await service.stop(0)
        assert service.has_failed

    try:
        asyncio.run(go())
    finally:
        go_on.set()


def test_there_is_patience_with_a_long_step() -> None:
    assert running.LEAST_PATIENCE_S >= 60
