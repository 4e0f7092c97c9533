"""The server on a loopback port, in a thread; and a service whose requests go as they are told.

with live(Service(FakeEngine(), FakeReward(), Pool(30_000))) as url:
    httpx.get(f"{url}/health")

scripted = Scripted([Text("a"), Ended(result)])        # every request: these events
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import uvicorn

from fakes import FakeEngine, FakeReward
from specrej.search.pool import Pool
from specrej.server.app import make_app
from specrej.server.http11 import Connection
from specrej.server.running import bound
from specrej.server.service import Service, StreamEvent
from specrej.settings import Settings
from specrej.types import Prompt

DEFAULTS = Settings(n=8, max_new_tokens=24, min_tokens=5, memory=6000)
WAIT_S = 120.0
_CLIENTS: list[openai.OpenAI] = []


def fake_service(engine: Any = None, reward: Any = None, **options: Any) -> Service:
    service = Service(engine or FakeEngine(), reward or FakeReward(), Pool(30_000), **options)
    service.start()
    return service


@dataclass
class ScriptedTicket:
    """Gives its events; where one is None it waits for ever."""

    events: Sequence[StreamEvent | None]
    is_cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        for event in self.events:
            if event is None:
                await asyncio.Event().wait()
            else:
                await asyncio.sleep(0)
                yield event

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Scripted:
    """In place of a `Service`: each request gets these events, or the error."""

    events: Sequence[StreamEvent | None] = ()
    error: Exception | None = None
    engine: Any = field(default_factory=FakeEngine)
    reward: Any = field(default_factory=FakeReward)
    tickets: list[ScriptedTicket] = field(default_factory=list)
    asked: list[tuple[Prompt, Settings, float, bool]] = field(default_factory=list)
    is_stopping: bool = False
    has_failed: bool = False
    num_active: int = 2
    num_waiting: int = 3
    max_queue: int = 64
    kv_bytes: int = 100
    total_bytes: int = 30_000

    def submit(
        self,
        prompt: Prompt,
        settings: Settings,
        *,
        deadline_s: float,
        is_watched: bool,
        place: int = 0,
    ) -> ScriptedTicket:
        self.asked.append((prompt, settings, deadline_s, is_watched))
        if self.error is not None:
            raise self.error
        self.tickets.append(ScriptedTicket(self.events))
        return self.tickets[-1]

    async def stop(self, grace_s: float) -> None:
        self.is_stopping = True


@contextmanager
def live(service: Any, **options: Any) -> Iterator[str]:
    """The URL of a server over the service, which is stopped at the end."""
    app = make_app(service, **{"model": "bytes", "defaults": DEFAULTS, **options})
    listener = bound("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
    )

    async def run() -> None:
        await server.serve([listener])
        await service.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        while _CLIENTS:
            _CLIENTS.pop().close()
        server.should_exit = server.force_exit = True
        thread.join()


def client(url: str, **options: Any) -> openai.OpenAI:
    """OpenAI's own client, closed when the server is."""
    given = {
        "base_url": f"{url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "timeout": WAIT_S,
        **options,
    }
    _CLIENTS.append(openai.OpenAI(**given))
    return _CLIENTS[-1]


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, for so long only."""
    limit_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < limit_s, "it did not come to be"
        time.sleep(0.01)


def lines_of(caplog: Any) -> list[str]:
    """What the server has logged, as it would stand on stderr."""
    from specrej.server.logs import JsonLines

    return [
        JsonLines(has_texts=False).format(record) for record in caplog.records if _is_ours(record)
    ]


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == "specrej.server"
