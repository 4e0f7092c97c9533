"""Before the queue: so many bytes, one at a time, the small ones first, and nothing tokenized that cannot fit."""

import asyncio
import threading
from contextlib import ExitStack
from typing import Any

import pytest
from live import PATIENCE_S, Served, serving, written

from fakes import FakeEngine
from specrej.server.lanes import _LANE_BYTES, Lanes, Line
from specrej.server.refusals import RefusalError
from specrej.types import Prompt

LARGE = 200_000


class Tokenizing(FakeEngine):
    """Counts what it tokenizes at a time, and stands still at large prompts until it may go on."""

    token_bytes = 10**6

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.is_there = threading.Event(), threading.Event()
        self.num_now = self.most = self.num_large = 0
        self._lock = threading.Lock()

    def encode(self, prompt: Prompt) -> list[int]:
        if threading.current_thread().name == "specrej-engine":
            return super().encode(prompt)
        is_large = len(str(prompt)) >= LARGE
        with self._lock:
            self.num_now += 1
            self.num_large += is_large
            self.most = max(self.most, self.num_now)
        if is_large:
            self.is_there.set()
            assert self.go_on.wait(PATIENCE_S)
        with self._lock:
            self.num_now -= 1
        return super().encode(prompt)


async def wait_for_all(served: Served, asking: list[Any]) -> list[int]:
    return [response.status_code for response in await asyncio.gather(*asking)]


def test_a_small_request_is_answered_while_large_ones_stand_still() -> None:
    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            asking = [asyncio.create_task(served.ask({"prompt": "x" * LARGE})) for _ in range(24)]
            await served.until(engine.is_there.is_set, "none was tokenized")
            honest = await served.ask({"prompt": "Why?", "specrej": {"deadline_s": 3}})
            assert honest.status_code == 200
            assert not engine.go_on.is_set()
            engine.go_on.set()
            assert await wait_for_all(served, asking) == [400] * 24
            assert engine.most <= 2, "a small one and a large one"

    asyncio.run(go())


def test_what_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    async def go() -> None:
        engine = Tokenizing()
        engine.token_bytes = 4
        async with serving(engine) as served:
            bodies: dict[str, dict[str, Any]] = {
                "/v1/completions": {"prompt": "x" * LARGE},
                "/v1/chat/completions": {"messages": [{"role": "user", "content": "é" * LARGE}]},
            }
            for path, body in bodies.items():
                refused = await served.ask(body, path)
                assert refused.status_code == 400
                assert "400 tokens, each of at most 4 bytes" in refused.json()["error"]["message"]
                assert refused.json()["error"]["param"] in body
            assert not engine.num_large

    asyncio.run(go())


def test_bodies_beyond_the_room_are_turned_away_and_small_ones_are_not() -> None:
    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            size = 1_000_000
            num_fitting = _LANE_BYTES // size
            asking = [asyncio.create_task(served.ask({"prompt": "x" * size})) for _ in range(num_fitting + 8)]
            await served.until(lambda: sum(task.done() for task in asking) == 8, "none was turned away")
            refused = [task.result() for task in asking if task.done()]
            assert {(response.status_code, response.headers["Retry-After"]) for response in refused} == {(429, "1")}
            assert {response.json()["error"]["code"] for response in refused} == {"too_many_bodies"}
            assert (await served.ask({"prompt": "a"})).status_code == 200
            engine.go_on.set()
            statuses = await wait_for_all(served, asking)
            assert sorted(statuses) == [400] * num_fitting + [429] * 8
            assert (await served.ask({"prompt": "x" * size})).status_code == 400, "there is room again"

    asyncio.run(go())


def test_the_time_before_the_queue_is_the_requests_own() -> None:
    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            first = asyncio.create_task(served.ask({"prompt": "x" * LARGE}))
            await served.until(engine.is_there.is_set, "none was tokenized")
            late = await served.ask({"prompt": "x" * LARGE, "stream": True, "specrej": {"deadline_s": 0.2}})
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
            assert "all spent before the queue" in late.json()["error"]["message"]
            engine.go_on.set()
            await first
            assert engine.num_large == 1, "nobody waited any more for the other"

    asyncio.run(go())


def test_a_client_that_leaves_before_the_queue_is_not_read_for() -> None:
    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            first = asyncio.create_task(served.ask({"prompt": "x" * LARGE}))
            await served.until(engine.is_there.is_set, "none was tokenized")
            _, writer = await asyncio.open_connection(*served.address)
            writer.write(written("/v1/completions", {"prompt": "y" * LARGE}))
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.close()
            told = 'path="/v1/completions",status="499"'

            async def is_gone() -> bool:
                return told in (await served.client.get("/metrics")).text

            async with asyncio.timeout(PATIENCE_S):
                while not await is_gone():
                    await asyncio.sleep(0.02)
            engine.go_on.set()
            await first
            assert engine.num_large == 1

    asyncio.run(go())


def test_the_smallest_goes_first() -> None:
    async def go() -> list[int]:
        line, go_on, done = Line(), threading.Event(), list[int]()
        first = asyncio.create_task(line.do(0, lambda: go_on.wait(PATIENCE_S)))
        await asyncio.sleep(0.05)
        rest = [
            asyncio.create_task(line.do(size, lambda size=size: done.append(size)))  # type: ignore[misc]
            for size in (50, 6, 900, 7)
        ]
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.gather(first, *rest)
        return done

    assert asyncio.run(go()) == [6, 7, 50, 900]


def test_many_small_bodies_are_too_many_at_some_number() -> None:
    lane = Lanes(2**20).of(1)
    with ExitStack() as held:
        for _ in range(1024):
            held.enter_context(lane.holding(1))
        with pytest.raises(RefusalError) as caught:
            held.enter_context(lane.holding(1))
    assert caught.value.status == 429
    with lane.holding(1):
        pass
