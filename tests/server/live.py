"""A server on the fake engine as `specrej serve` runs it, on a port of its own, and clients that
misbehave by hand.

    async with serving(FakeEngine()) as served:
        response = await served.ask({"prompt": "Why?"})
        connection = await connect(served, "/v1/completions", {"prompt": "Why?"})
        connection.reset()

When the block ends, nothing may be in flight, reserved or open any more.
"""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn.server

from fakes import FakeEngine, FakeReward, FakeSession, by_hash
from specrej.engines.base import Engine, Token
from specrej.search.pool import Pool
from specrej.server.app import make_app
from specrej.server.running import bound, run
from specrej.server.service import Service
from specrej.settings import Settings
from specrej.types import Message

SETTINGS = Settings(n=12, max_new_tokens=30, min_tokens=5, memory=6000, decide="every:8")
TOTAL_BYTES = 30_000
PATIENCE_S = 120.0


class MovedClock:
    """The service's clock, moved on by hand: how fast the machine is does not count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_s = 0.0
        monkeypatch.setattr("specrej.server.service.time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s


class ForgetfulReward(FakeReward):
    """Keeps no list of its sessions, but counts those that are open."""

    def __init__(self, rate: Callable[[str], float] = by_hash) -> None:
        super().__init__(rate)
        self.num_open = 0

    def open(self, messages: Sequence[Message]) -> FakeSession:
        session, self.sessions = super().open(messages), []
        self.num_open += 1
        close = session.close

        def counted() -> None:
            close()
            self.num_open -= 1

        session.close = counted  # type: ignore[method-assign]
        return session


class Stalling(FakeEngine):
    """Stands still before its third step until it may go on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.go_on, self.is_there = threading.Event(), threading.Event()

    def step(self, limits: Any = None) -> list[Token]:
        if self.num_steps == 2:
            self.is_there.set()
            assert self.go_on.wait(PATIENCE_S)
        return super().step(limits)


@dataclass
class Served:
    """A server that runs, and a client of it."""

    service: Service
    client: httpx.AsyncClient
    address: tuple[str, int]

    async def ask(self, body: dict[str, Any], path: str = "/v1/completions") -> httpx.Response:
        return await self.client.post(path, json={"model": "bytes", **body})

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not is_so():
                    await asyncio.sleep(0.005)
        assert is_so(), what

    async def hears(self, leave: Callable[[], object]) -> None:
        """Until the service was told that a client has left, while its thread stands still."""
        calls = self.service._calls
        before = calls.qsize()
        leave()
        await self.until(lambda: calls.qsize() > before, "nobody saw it leave")

    async def is_idle(self) -> None:
        """Nothing runs or waits any more, and the budget is back to zero, as /metrics says too."""
        service = self.service
        await self.until(
            lambda: not (service.num_active or service.num_waiting or service.kv_bytes),
            "never idle",
        )
        said = dict(
            line.rsplit(" ", 1) for line in (await self.client.get("/metrics")).text.splitlines()
        )
        names = ("specrej_kv_bytes", "specrej_requests_in_flight", "specrej_requests_queued")
        assert [float(said[name]) for name in names] == [0.0, 0.0, 0.0]


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds / 20)


# Uvicorn looks ten times a second whether it is to end, and waits another tenth when it does: with
# a server for each of hundreds of tests, minutes.
uvicorn.server.asyncio = SimpleNamespace(**{**vars(asyncio), "sleep": _sleep})  # type: ignore[assignment, attr-defined]


@contextlib.asynccontextmanager
async def serving(
    engine: Engine,
    reward: Any = None,
    *,
    defaults: Settings = SETTINGS,
    total_bytes: int = TOTAL_BYTES,
    **options: Any,
) -> AsyncIterator[Served]:
    """As `specrej serve` runs it, on a port of its own; ended by a signal. Nothing may be left
    then."""
    reward = reward or ForgetfulReward()
    service = Service(engine, reward, Pool(total_bytes), **options)
    ready, before = (
        asyncio.Event(),
        {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)},
    )
    with bound("127.0.0.1", 0) as listener:
        # What is sent waits in the server soon, not in the system's buffers.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        app = make_app(service, model="bytes", defaults=defaults)
        running = asyncio.create_task(run(app, service, listener, grace_s=0, on_ready=ready.set))
        await ready.wait()
        host, port = listener.getsockname()
        # The server closes what has been idle for 5 s. The client gives it up well before: else, on
        # a busy machine, it would ask on a connection that is about to be closed.
        most = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=1.0)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{host}:{port}", timeout=PATIENCE_S, limits=most
            ) as client:
                served = Served(service, client, (host, port))
                yield served
                await served.is_idle()
        finally:
            signal.raise_signal(signal.SIGTERM)
            await running
            for kind, handler in before.items():
                signal.signal(kind, handler)
    if isinstance(engine, FakeEngine):
        assert not engine.groups
    if isinstance(reward, ForgetfulReward):
        assert not reward.num_open


@dataclass
class Connection:
    """A client by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Gone at once, as when a process is killed."""
        own: socket.socket = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def written(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps({"model": "bytes", **body}).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


async def connect(
    served: Served, path: str, body: dict[str, Any], *, most_bytes: int | None = None
) -> Connection:
    """Send a request, or its first bytes; of the answer no more than a few KiB is taken before
    it is read."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, served.address)
    connection = Connection(*await asyncio.open_connection(sock=own, limit=2**12))
    connection.writer.write(written(path, body)[:most_bytes])
    await connection.writer.drain()
    return connection
