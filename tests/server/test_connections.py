"""Connections by hand: those that never finish, that send too much, that close one side, that leave
without a word.
"""

import asyncio
import json
import resource
import socket
from typing import Any

import pytest
from live import PATIENCE_S, Served, Stalling, serving, written

from fakes import FakeEngine
from specrej.server import http11
from specrej.server.http11 import Connection, most_connections

HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n"


async def opened(served: Served, raw: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(raw)
    await writer.drain()
    return reader, writer


async def to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read()


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of what comes next but for `100 Continue`."""
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            return await one_answer(reader)
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        return int(head.split(b" ")[1]), await reader.readexactly(int(lines[b"content-length"]))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"G",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        GET + b"GET /hea",
        b"POST /v1/completions HTTP/1.1\r\n" + HEAD + b"Content-Length: 99999999\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 999\r\n\r\n{",
    ],
)
def test_what_never_comes_to_an_end_is_closed(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http11, "HEADERS_S", 0.2)

    async def go() -> None:
        async with serving(FakeEngine()) as served:
            reader, writer = await opened(served, raw)

            async def trickle() -> None:
                while True:
                    await asyncio.sleep(0.05)
                    writer.write(b"x")

            trickling = asyncio.create_task(trickle())
            try:
                await to_end(reader)
            except ConnectionResetError:
                pass
            finally:
                trickling.cancel()
                writer.close()

    asyncio.run(go())


def test_a_request_that_is_slow_to_be_answered_is_not_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http11, "HEADERS_S", 0.1)

    async def go() -> None:
        engine = Stalling()
        async with serving(engine) as served:
            reader, writer = await opened(served, written("/v1/completions", {"prompt": "a"}))
            await served.until(engine.is_there.is_set, "it never ran")
            await asyncio.sleep(0.3)
            engine.go_on.set()
            assert (await one_answer(reader))[0] == 200
            writer.close()

    asyncio.run(go())


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("more", [b"", b"x", GET, GET * 20, b"x" * 100_000])
@pytest.mark.parametrize("is_later", [False, True])
def test_a_client_that_leaves_is_noticed_whatever_followed_its_request(
    is_streamed: bool, more: bytes, is_later: bool
) -> None:
    async def go() -> None:
        engine = Stalling()
        async with serving(engine, in_flight=1) as served:
            first = asyncio.create_task(served.ask({"prompt": "first"}))
            await served.until(engine.is_there.is_set, "it never ran")
            calls = served.service._calls
            before = calls.qsize()
            asked = written("/v1/completions", {"prompt": "a", "stream": is_streamed})
            reader, writer = await opened(served, asked if is_later else asked + more)
            await served.until(lambda: served.service.num_waiting == 1, "it does not wait")
            if is_later:
                for start in range(0, len(more), 20_000):
                    writer.write(more[start : start + 20_000])
                    await asyncio.sleep(0.02)
            if is_streamed:
                await reader.readuntil(b"queued")
            writer.close()
            # The thread stands still: it was told of the request, and is told that it is over.
            await served.until(lambda: calls.qsize() >= before + 2, "nobody saw it leave")
            engine.go_on.set()
            await first
            await served.is_idle()
            assert engine.num_prefills == 1, "nobody waits for the other"

    asyncio.run(go())


@pytest.mark.parametrize("more", [b"", GET, GET * 3])
def test_requests_one_behind_the_other_are_all_answered(more: bytes) -> None:
    async def go() -> None:
        engine = Stalling()
        async with serving(engine) as served:
            reader, writer = await opened(
                served, written("/v1/completions", {"prompt": "a"}) + more
            )
            await served.until(engine.is_there.is_set, "it never ran")
            writer.write(GET + written("/v1/completions", {"prompt": "b"}) + GET)
            await writer.drain()
            engine.go_on.set()
            num_more = more.count(b"GET")
            statuses = [await one_answer(reader) for _ in range(num_more + 4)]
            assert [status for status, _ in statuses] == [200] * (num_more + 4)
            assert "choices" in json.loads(statuses[0][1])
            assert "choices" in json.loads(statuses[num_more + 2][1])
            writer.close()

    asyncio.run(go())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_closes_its_side_gets_its_answer(
    is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = list[Connection](), Connection._look

    def counted(self: Connection) -> None:
        looks.append(self)
        look(self)

    monkeypatch.setattr(http11, "_LOOK_S", 0.01)
    monkeypatch.setattr(Connection, "_look", counted)

    async def go() -> None:
        engine = Stalling()
        async with serving(engine) as served:
            body = {"prompt": "a", "stream": is_streamed}
            reader, writer = await opened(served, written("/v1/completions", body) + GET)
            writer.write_eof()
            await served.until(engine.is_there.is_set, "it never ran")
            await served.until(lambda: len(looks) > 5, "nobody looks whether it has left")
            assert engine.groups, "it goes on"
            engine.go_on.set()
            answer = await to_end(reader)
            assert b"HTTP/1.1 200 OK" in answer
            assert (b"data: [DONE]" if is_streamed else b'"choices"') in answer
            assert answer.endswith(b'{"status":"ok"}'), "what was asked behind it is answered too"
            writer.close()

    asyncio.run(go())


def test_of_an_old_client_a_closed_side_means_that_it_left() -> None:
    """HTTP/1.0 has no answer that says nothing yet, by which it could be told."""

    async def go() -> None:
        engine = Stalling()
        async with serving(engine) as served:
            asked = written("/v1/completions", {"prompt": "a"}).replace(b"HTTP/1.1", b"HTTP/1.0")
            _, writer = await opened(served, asked)
            await served.until(engine.is_there.is_set, "it never ran")
            await served.hears(writer.write_eof)
            engine.go_on.set()
            await served.is_idle()
            assert engine.num_steps < 30
            writer.close()

    asyncio.run(go())


def test_a_body_that_is_too_long_by_its_own_account_is_refused_at_once() -> None:
    async def go() -> None:
        async with serving(FakeEngine()) as served:
            for length in (b"1048577", b"9" * 18):
                raw = (
                    b"POST /v1/completions HTTP/1.1\r\n"
                    + HEAD
                    + b"Content-Length: "
                    + length
                    + b"\r\n\r\n"
                )
                reader, writer = await opened(served, raw)
                assert (await one_answer(reader))[0] == 413
                writer.close()
            waiting = b"POST /v1/completions HTTP/1.1\r\n" + HEAD
            reader, writer = await opened(
                served, waiting + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413"), "it is not told to go on"
            writer.close()

    asyncio.run(go())


def test_connections_beyond_the_open_files_are_closed_and_those_within_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        async with serving(FakeEngine()) as served:
            kept = [await opened(served, b"GET") for _ in range(5)]
            monkeypatch.setattr(Connection, "most_open", 5)
            for _ in range(20):
                reader, writer = await opened(served, b"")
                assert await to_end(reader) == b""
                writer.close()
            kept[0][1].close()
            async with asyncio.timeout(PATIENCE_S):
                while not await is_served(served):
                    await asyncio.sleep(0.02)
            for _, writer in kept:
                writer.close()
            monkeypatch.setattr(Connection, "most_open", float("inf"))

    asyncio.run(go())


async def is_served(served: Served) -> bool:
    reader, writer = await opened(served, GET)
    try:
        return (await one_answer(reader))[0] == 200
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()


def test_open_files_are_left_for_what_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(most: int) -> Any:
        return lambda _kind: (most, most)

    monkeypatch.setattr(resource, "getrlimit", limit(1024))
    assert 500 < most_connections(128) < 1024 - 128 - 64
    monkeypatch.setattr(resource, "getrlimit", limit(64))
    assert most_connections(128) == 1
    monkeypatch.setattr(resource, "getrlimit", limit(resource.RLIM_INFINITY))
    assert most_connections(128) == float("inf")


def test_head_works_where_get_does() -> None:
    async def go() -> None:
        async with serving(FakeEngine()) as served:
            for path in (
                "/health",
                "/",
                "/docs",
                "/openapi.json",
                "/metrics",
                "/v1/models",
                "/v1/models/bytes",
            ):
                got, head = await served.client.get(path), await served.client.head(path)
                assert (head.status_code, head.content) == (200, b""), path
                assert head.headers["content-type"] == got.headers["content-type"]
                assert (
                    path == "/metrics"
                    or head.headers["content-length"] == got.headers["content-length"]
                )
            assert (await served.client.head("/v1/completions")).status_code == 405
            assert (await served.client.head("/nowhere")).status_code == 404

    asyncio.run(go())


def test_nothing_is_redirected() -> None:
    async def go() -> None:
        async with serving(FakeEngine()) as served:
            for path in (
                "/metrics/",
                "/health/",
                "/docs/",
                "/v1/models/",
                "/v1/completions/",
                "//v1/models",
            ):
                for method in ("GET", "HEAD", "POST"):
                    headers = {"Content-Type": "application/json"}
                    response = await served.client.request(
                        method,
                        f"http://{served.address[0]}:{served.address[1]}{path}",
                        headers=headers,
                    )
                    assert response.status_code in (404, 405), path
                    assert "location" not in response.headers

    asyncio.run(go())


def test_no_connection_is_left_half_open() -> None:
    """A socket whose other side is gone for good is closed when its request has ended."""

    async def go() -> None:
        async with serving(FakeEngine()) as served:
            with socket.create_connection(served.address) as own:
                own.sendall(written("/v1/completions", {"prompt": "a"}))
                own.shutdown(socket.SHUT_WR)
                own.settimeout(PATIENCE_S)
                answer = b""
                while piece := await asyncio.to_thread(own.recv, 2**16):
                    answer += piece
            assert b'"choices"' in answer

    asyncio.run(go())
