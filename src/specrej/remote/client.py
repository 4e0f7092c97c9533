"""JSON over HTTP: the one client of specrej, with deadlines, bounded concurrency, retries, and a
key that nobody sees.

    service = RemoteService(url="http://localhost:8000/score", timeout_s=30, concurrency=4)
    with Remote(service) as remote:
        # in the order of the texts
        replies = remote.run(remote.post({"text": text}) for text in texts)
        print(replies[0].text)

It knows neither rewards nor judges. Requests run in an event loop on a thread of its own, so that
waiting can end at any moment (Ctrl-C, the first failure, `close`). So it serves as well where a
loop is running already, in a notebook. Several may share one loop and its connections:

    connections = Connections(service)
    with Remote(service, connections) as one, Remote(service, connections) as other:
        ...
    connections.close()

httpx is imported when the first request is made.
"""

import asyncio
import json
import random
import ssl
import threading
import weakref
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from specrej.remote.services import RemoteService

T = TypeVar("T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_PASSING = (408, 409, 425, 429)
"""With 500 and above: the statuses after which asking again may help."""
_REFUSALS = {
    401: "check the API key",
    403: "check the API key",
    404: "check the URL and the model's name",
}
_LONGEST_QUOTE = 200


class Reply(NamedTuple):
    """What came back.

    Attributes:
        text: the body.
        num_requests: sent for it, repeated ones included.
    """

    text: str
    num_requests: int


class RemoteError(Exception):
    """No reply that can be used. The message holds no key.

    Attributes:
        wait_s: seconds that the service asks to wait before the next try; None where another try
            will not help.
        hint: what to do, or None.
        is_common: every other request would fail in the same way.
        status: of the reply, where there was one.
        body: of the reply, whole; it may hold the key, so it is not for showing as it is.
        num_requests: sent before giving up.
    """

    def __init__(
        self,
        problem: str,
        *,
        wait_s: float | None = None,
        hint: str | None = None,
        is_common: bool = False,
        status: int | None = None,
        body: str = "",
    ) -> None:
        super().__init__(problem)
        self.body = body
        self.wait_s = wait_s
        self.hint = hint
        self.is_common = is_common
        self.status = status
        self.num_requests = 1

    def __str__(self) -> str:
        tries = f"after {self.num_requests} tries: " if self.num_requests > 1 else ""
        return tries + super().__str__()


class Connections:
    """An HTTP client and the event loop that it runs in, on a thread of its own; there from the
    first use until closed.

    Where another process unpickles them, they are as new.
    """

    def __init__(self, service: RemoteService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
        self._is_closed = False
        self.http: Any = None
        """The `httpx.AsyncClient`, when a request has begun."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Connections, (self._service,)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin without waiting, on the thread of the loop. May be called on any thread.

        Raises:
            RemoteError: they are closed.
        """
        with self._lock:
            if self._is_closed:
                coroutine.close()  # Python warns of one that was never awaited
                raise RemoteError("the connections are closed")
            loop, _ = self._running = self._running or self._open()
            return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def _open(self) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        import httpx

        headers = {"Content-Type": "application/json"}
        if self._service.api_key:
            headers["Authorization"] = f"Bearer {self._service.api_key}"
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=self._service.concurrency
        )
        self.http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_tls())
        loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=_run, args=(loop, self.http), name="specrej-remote", daemon=True
        )
        thread.start()
        weakref.finalize(self, _stop, loop)  # of those that nobody closed
        return loop, thread

    def close(self) -> None:
        """End what is under way, the connections and the thread. Nothing can be started any
        more.
        """
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, None
        if running is not None:
            loop, thread = running
            _stop(loop)
            thread.join()


def _run(loop: asyncio.AbstractEventLoop, http: Any) -> None:
    """What the thread does: the loop until it is stopped, then what is left to be ended."""
    loop.run_forever()
    loop.run_until_complete(_cancel_all())
    loop.run_until_complete(http.aclose())
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(loop.stop)


class Remote:
    """Asks one service until it is closed, so many requests at a time.

    Args:
        service: where requests go, and how.
        connections: to the service, which others share; by default it has its own, and closes them.
    """

    def __init__(self, service: RemoteService, connections: Connections | None = None) -> None:
        self.service = service
        self._slots = asyncio.Semaphore(service.concurrency)
        self._has_answered = self._is_stopped = False
        self._connections = connections or Connections(service)
        self._owns = connections is None
        self._under_way: set[Future[Any]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Their results, in order; the first failure ends the others and is raised. May be called
        on any thread.

        From a generator, none is made where another thread stops all before it comes to that.
        """
        return self.wait(_gather(coroutines))

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. May be called on any thread."""
        future = self.start(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C nothing goes on that nobody waits for

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin without waiting. Cancelling the future closes the connection of a request that
        is under way.
        """
        future = self._connections.start(coroutine)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    async def post(self, body: object, url: str | None = None) -> Reply:
        """Post `body` as JSON; again where asking again may help, with longer and longer waits in
        between.

        Raises:
            RemoteError: no reply within the tries, or one that says that there will be none.
        """
        return await self._ask("POST", url or self.service.url, json.dumps(body).encode())

    async def get(self, url: str) -> Reply:
        """Fetch another of the service's URLs, tried like a post.

        Raises:
            RemoteError: as for `post`.
        """
        return await self._ask("GET", url, None)

    async def _ask(self, method: str, url: str, content: bytes | None) -> Reply:
        num_requests = 0
        async with self._slots:
            while True:
                num_requests += 1
                if self._is_stopped:
                    raise RemoteError("stopped")
                try:
                    return Reply(await self._send(method, url, content), num_requests)
                except RemoteError as error:
                    error.num_requests = num_requests
                    is_last = num_requests == self.service.tries
                    if is_last or error.wait_s is None or error.wait_s > _LONGEST_WAIT_S:
                        raise
                    wait_s = error.wait_s
                backoff_s = min(_FIRST_WAIT_S * 2 ** (num_requests - 1), _LONGEST_WAIT_S)
                await self.pause(wait_s + backoff_s * random.uniform(0.5, 1))

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _send(self, method: str, url: str, content: bytes | None) -> str:
        """The body of the reply to one request."""
        import httpx

        try:
            async with asyncio.timeout(self.service.timeout_s):
                response = await self._connections.http.request(method, url, content=content)
        except TimeoutError:
            raise RemoteError(f"no reply within {self.service.timeout_s:g} s", wait_s=0.0) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            problem = f"no reply: {self.quote(str(error) or type(error).__name__)}"
            unreachable = (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL)
            if isinstance(error, unreachable) and not self._has_answered:
                problem = f"cannot be reached, {problem}"
                raise RemoteError(problem, hint="check the URL", is_common=True) from None
            raise RemoteError(problem, wait_s=0.0) from None
        self._has_answered = True
        if response.is_success:
            return str(response.text)
        status = response.status_code
        problem = f"status {status}: {self.quote(response.text)}"
        if hint := _REFUSALS.get(status):
            raise RemoteError(
                f"refuses to answer, {problem}",
                hint=hint,
                is_common=True,
                status=status,
                body=response.text,
            )
        is_passing = status in _PASSING or status >= 500
        asked_s = _retry_after_s(response.headers.get("retry-after", ""))
        raise RemoteError(
            problem, wait_s=asked_s if is_passing else None, status=status, body=response.text
        )

    def quote(self, text: str) -> str:
        """The beginning of what the service said, without the key: some quote it when they
        complain.
        """
        key = self.service.api_key
        return repr((text.replace(key, "***") if key else text)[:_LONGEST_QUOTE])

    def stop(self) -> None:
        """End what is under way; what is posted from now on fails."""
        self._is_stopped = True
        if self._under_way:
            with suppress(
                RemoteError, CancelledError
            ):  # closed meanwhile, and all has ended with that
                self._connections.start(_cancel(self._under_way)).result()

    def close(self) -> None:
        """End what is under way, and the connections if they are its own."""
        self.stop()
        if self._owns:
            self._connections.close()


@cache
def _tls() -> ssl.SSLContext:
    """Made once: reading the certificates takes tens of milliseconds."""
    import httpx

    return httpx.create_ssl_context()


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _cancel(under_way: set[Future[Any]]) -> None:
    """Cancel these, and wait until they have ended."""
    for future in list(under_way):
        future.cancel()
    await asyncio.sleep(0)  # their tasks hear of it
    tasks = [task for task in asyncio.all_tasks() if task.cancelling()]
    await asyncio.gather(*tasks, return_exceptions=True)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _retry_after_s(header: str) -> float:
    """Seconds that a Retry-After asks for: a number, or a date; 0 where it is neither."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0
