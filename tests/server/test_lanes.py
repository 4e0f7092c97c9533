"""Before the queue: so many bytes, one at a time, the small ones first, and nothing tokenized that
cannot fit.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import PATIENCE_S, Served, serving, written

from fakes import FakeEngine
from specrej.server.lanes import _LANE_BYTES, _LEAST_BYTES, Lane, Lanes, Line, Room
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
            honest = await served.ask({"prompt": "Why?", "specrej": {"deadline_s": 30}})
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
            asking = [
                asyncio.create_task(served.ask({"prompt": "x" * size}))
                for _ in range(num_fitting + 8)
            ]
            await served.until(
                lambda: sum(task.done() for task in asking) == 8, "none was turned away"
            )
            refused = [task.result() for task in asking if task.done()]
            assert {
                (response.status_code, response.headers["Retry-After"]) for response in refused
            } == {(429, "1")}
            assert {response.json()["error"]["code"] for response in refused} == {"too_many_bodies"}
            assert (await served.ask({"prompt": "a"})).status_code == 200
            engine.go_on.set()
            statuses = await wait_for_all(served, asking)
            assert sorted(statuses) == [400] * num_fitting + [429] * 8
            assert (await served.ask({"prompt": "x" * size})).status_code == 400, (
                "there is room again"
            )

    asyncio.run(go())


def test_the_time_before_the_queue_is_the_requests_own() -> None:
    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            first = asyncio.create_task(served.ask({"prompt": "x" * LARGE}))
            await served.until(engine.is_there.is_set, "none was tokenized")
            late = await served.ask(
                {"prompt": "x" * LARGE, "stream": True, "specrej": {"deadline_s": 0.2}}
            )
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
            assert "all spent before the queue" in late.json()["error"]["message"]
            engine.go_on.set()
            await first
            assert engine.num_large == 1, "nobody waited any more for the other"

    asyncio.run(go())


def test_a_client_that_leaves_before_the_queue_is_not_read_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, do = list[int](), Line.do

    def noted(self: Line, num_bytes: int, work: Any) -> Any:
        jobs.append(num_bytes)
        return do(self, num_bytes, work)

    monkeypatch.setattr(Line, "do", noted)

    async def go() -> None:
        engine = Tokenizing()
        async with serving(engine) as served:
            first = asyncio.create_task(served.ask({"prompt": "x" * LARGE}))
            await served.until(engine.is_there.is_set, "none was tokenized")
            _, writer = await asyncio.open_connection(*served.address)
            writer.write(written("/v1/completions", {"prompt": "y" * LARGE}))
            await writer.drain()
            # Each of the two is parsed, and then tokenized.
            await served.until(lambda: len(jobs) == 4, "it does not wait to be tokenized")
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
        is_there = threading.Event()

        def hold() -> None:
            is_there.set()
            go_on.wait(PATIENCE_S)

        first = asyncio.create_task(line.do(0, hold))
        assert await asyncio.to_thread(is_there.wait, PATIENCE_S)
        rest = [
            asyncio.create_task(line.do(size, lambda size=size: done.append(size)))  # type: ignore[misc]
            for size in (50, 6, 900, 7)
        ]
        await asyncio.sleep(0)  # all of them stand in line
        go_on.set()
        await asyncio.gather(first, *rest)
        return done

    assert asyncio.run(go()) == [6, 7, 50, 900]


def test_many_small_bodies_are_too_many_at_some_number() -> None:
    lane = Lanes(2**20).of(1)

    def hold() -> None:
        room = held.enter_context(lane.holding())
        room.begin(lambda: None)
        room.grow(1)
        room.end()

    with ExitStack() as held:
        for _ in range(1024):
            hold()
        with pytest.raises(RefusalError) as caught:
            hold()
    assert caught.value.status == 429
    with ExitStack() as held:
        hold()


@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12))),
    most=st.integers(1, 8),
)
def test_room_is_what_came_and_the_silent_make_way(steps: list[tuple[int, int]], most: int) -> None:
    """Against a list of who sent when. A body begins as it is first named; then so many 4 KiB
    more come, or its end."""
    lane = Lane(most * _LEAST_BYTES)
    with ExitStack() as held:
        rooms: dict[int, Room] = {}
        came: dict[int, int] = {}  # of bodies that have room
        silent: list[int] = []  # that are not whole, the longest silent first

        def turned_away(number: int) -> None:
            assert silent.pop(0) == number
            del came[number]

        for number, size in steps:
            begins = number not in rooms
            if begins:
                rooms[number], came[number] = held.enter_context(lane.holding()), 0
            elif number not in came:
                for act in (rooms[number].check, rooms[number].end, partial(rooms[number].grow, 1)):
                    with pytest.raises(RefusalError):
                        act()
                continue
            elif number not in silent:
                continue
            else:
                silent.remove(number)
            if not begins and size == 0:
                rooms[number].end()
                continue
            came[number] += 0 if begins else size * 4096
            wanted = max(came[number], _LEAST_BYTES)
            try:
                if begins:
                    rooms[number].begin(partial(turned_away, number))
                else:
                    rooms[number].grow(came[number])
                silent.append(number)
            except RefusalError:
                del came[number]
                assert not silent, "who was silent stayed"
                others = sum(max(one, _LEAST_BYTES) for one in came.values())
                assert others + wanted > most * _LEAST_BYTES, "there was room"
                return
            assert lane.free_bytes == most * _LEAST_BYTES - sum(
                max(one, _LEAST_BYTES) for one in came.values()
            )
            assert lane.free_bytes >= 0
    assert lane.free_bytes == most * _LEAST_BYTES


@pytest.mark.parametrize(
    ("framing", "number"),
    [
        ("Transfer-Encoding: chunked", 20),
        ("Content-Length: 1048576", 20),
        ("Content-Length: 65536", 280),
    ],
)
def test_connections_that_only_declare_a_body_keep_nobody_out(framing: str, number: int) -> None:
    lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        framing,
        "",
        "",
    ]

    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        yield content

    async def go() -> None:
        async with serving(FakeEngine()) as served:
            writers = []
            for _ in range(number):
                _, writer = await asyncio.open_connection(*served.address)
                writer.write("\r\n".join(lines).encode())
                await writer.drain()
                writers.append(writer)
            # What was accepted before is read before.
            assert (await served.client.get("/health")).status_code == 200
            small = {"model": "bytes", "prompt": "Why?"}
            large = {**small, "user": "x" * LARGE}
            for body in (small, large):
                content = json.dumps(body).encode()
                for sent in (content, chunks(content)):
                    headers = {"Content-Type": "application/json"}
                    answer = await served.client.post(
                        "/v1/completions", content=sent, headers=headers
                    )
                    assert answer.status_code == 200, answer.text
            for writer in writers:
                writer.close()

    asyncio.run(go())


def test_who_has_been_silent_for_longest_is_told_so() -> None:
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]

    async def begin(
        served: Served, num_bytes: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(
            "\r\n".join([*head, f"Content-Length: {2**20}", "", ""]).encode() + b" " * num_bytes
        )
        await writer.drain()
        return reader, writer

    async def go() -> None:
        async with serving(FakeEngine()) as served:
            silent = await begin(served, 900_000)
            others = [await begin(served, 900_000) for _ in range(_LANE_BYTES // 900_000)]
            async with asyncio.timeout(PATIENCE_S):
                answer = await silent[0].read()
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1" in answer
            assert b"too_many_bodies" in answer
            for _, writer in [silent, *others]:
                writer.close()

    asyncio.run(go())
