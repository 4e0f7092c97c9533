"""The HTTP client, against a real server in a thread."""

import asyncio
import gc
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from servers import Server, record_waits, serving
from specrej.errors import UsageError
from specrej.remote.client import Remote, RemoteError, Reply
from specrej.remote.services import RemoteService, key_from, without_secrets

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


def post(server: Server | str, *bodies: object, **options: Any) -> list[Reply]:
    url = server if isinstance(server, str) else server.url
    with Remote(RemoteService(**{"url": url, "api_key": KEY} | options)) as remote:
        return remote.run([remote.post(body) for body in bodies])


def failure(server: Server | str, **options: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        post(server, {}, **options)
    return caught.value


def test_replies_come_in_the_order_of_the_posts(server: Server) -> None:
    first_is_last = threading.Event()

    def answer(request: dict[str, Any]) -> int:
        if request["n"] == 0:
            assert first_is_last.wait(120)
        if request["n"] == 7:
            first_is_last.set()
        return int(request["n"])

    server.answer = answer
    replies = post(server, *({"n": n} for n in range(8)))
    assert replies == [(str(n), 1) for n in range(8)]
    assert server.keys == {f"Bearer {KEY}"}


def test_a_post_may_go_elsewhere_on_the_service(server: Server) -> None:
    with Remote(RemoteService(url=f"{server.url}/one")) as remote:
        remote.run([remote.post({}), remote.post({}, f"{server.url}/other")])
    assert server.paths == {"/one", "/other"}


def test_what_was_begun_ends_when_it_is_cancelled(server: Server) -> None:
    asked, ended = threading.Event(), threading.Event()

    def answer(request: dict[str, Any]) -> None:
        asked.set()
        ended.wait(120)

    server.answer = answer
    with Remote(RemoteService(url=server.url)) as remote:
        begun = remote.start(remote.post({}))
        assert asked.wait(120)
        assert begun.cancel()
        ended.set()
        wait_until(lambda: server.connected == 0)


def test_any_text_arrives(server: Server) -> None:
    server.answer = lambda request: request
    text = 'é\n"\ud800\U0001f600'
    post(server, {"text": text})
    assert server.requests == [{"text": text}]


def test_without_a_key_none_is_sent(server: Server) -> None:
    post(server, {}, api_key=None)
    post(server, {}, api_key="")
    assert server.keys == {None}


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_a_time_than_asked_for(server: Server, concurrency: int) -> None:
    together = threading.Barrier(concurrency, timeout=120)
    server.answer = lambda request: together.wait()
    post(server, *range(6), concurrency=concurrency)
    assert (len(server.requests), server.most_running) == (6, concurrency)


def test_connections_are_kept_and_closed_in_the_end(server: Server) -> None:
    with Remote(RemoteService(url=server.url)) as remote:
        for _ in range(5):
            remote.run([remote.post({})])
        assert (server.connected, server.num_connections) == (1, 1)
    wait_until(lambda: server.connected == 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "specrej-remote"]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_may_pass_is_asked_again_with_longer_and_longer_waits(
    server: Server, waits: list[float], status: int
) -> None:
    server.answer = lambda request: (status, {}, b"busy")
    error = failure(server)
    assert str(error) == f"after 6 tries: status {status}: 'busy'"
    assert (error.num_requests, error.is_common) == (len(server.requests), False) == (6, False)
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)] == [True] * 5


def test_waits_vary_and_do_not_grow_without_end(server: Server, waits: list[float]) -> None:
    server.answer = lambda request: (500, {}, b"")
    failure(server, tries=20)
    assert all(30 <= wait <= 60 for wait in waits[6:])
    assert len(set(waits)) == 19


def test_a_service_that_recovers_is_waited_for(server: Server) -> None:
    server.answer = lambda request: 1 if len(server.requests) == 3 else (500, {}, b"")
    assert post(server, {}) == [("1", 3)]


def test_retry_after_is_honoured_up_to_a_minute(server: Server, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=40), usegmt=True)
    asked = iter(["7", " 0 ", soon, past, "never"])
    server.answer = lambda request: (
        (429, {"Retry-After": value}, b"") if (value := next(asked, None)) else 1
    )
    assert post(server, {}) == [("1", 6)]
    backoffs = [wait - 2.0**n for n, wait in enumerate(waits)]
    assert 6.5 <= backoffs[0] <= 7
    assert -1 <= backoffs[1] <= 0
    assert 30 <= backoffs[2] <= 40
    assert -4 <= backoffs[3] <= 0
    assert -8 <= backoffs[4] <= 0


def test_a_wait_that_is_too_long_is_a_failure_at_once(server: Server, waits: list[float]) -> None:
    server.answer = lambda request: (429, {"Retry-After": "3600"}, b"no more today")
    assert str(failure(server)) == "status 429: 'no more today'"
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize(
    ("status", "is_common"), [(400, False), (422, False), (401, True), (403, True), (404, True)]
)
def test_what_will_not_pass_is_not_asked_again(
    server: Server, status: int, is_common: bool
) -> None:
    server.answer = lambda request: (status, {}, b"no")
    error = failure(server)
    assert f"status {status}: 'no'" in str(error)
    assert error.status == status
    assert (len(server.requests), error.is_common, error.hint is not None) == (
        1,
        is_common,
        is_common,
    )


def test_a_reply_that_does_not_come_is_a_failure(server: Server) -> None:
    release = threading.Event()
    server.answer = lambda request: release.wait(120)
    assert str(failure(server, timeout_s=0.05, tries=3)) == "after 3 tries: no reply within 0.05 s"
    release.set()


class Trickle(socketserver.BaseRequestHandler):
    """Promises a long body and sends a byte of it now and then."""

    stop = threading.Event()

    def handle(self) -> None:
        self.request.recv(1 << 16)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not self.stop.wait(0.01):
            try:
                self.request.sendall(b" ")
            except OSError:
                return


def test_a_reply_that_does_not_end_is_a_failure() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Trickle) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        error = failure(f"http://127.0.0.1:{server.server_address[1]}", timeout_s=0.3, tries=1)
        Trickle.stop.set()
        server.shutdown()
        thread.join()
    assert str(error) == "no reply within 0.3 s"


@pytest.mark.parametrize("broken", [{1}, {2, 3}])
def test_a_connection_that_breaks_is_tried_again(server: Server, broken: set[int]) -> None:
    def answer(request: dict[str, Any]) -> int:
        if len(server.requests) in broken:
            raise ConnectionAbortedError
        return 1

    server.answer = answer
    assert [reply.text for reply in post(server, {}, {}, {}, concurrency=1)] == ["1"] * 3


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "localhost:8000", "ftp://host", "http://[", ""]
)
def test_what_is_not_there_is_a_failure_at_once(url: str, waits: list[float]) -> None:
    error = failure(url)
    assert str(error).startswith("cannot be reached, no reply: ")
    assert (error.is_common, error.hint, waits) == (True, "check the URL", [])


def test_a_service_that_goes_away_is_waited_for(waits: list[float]) -> None:
    with serving() as server:
        server.answer = lambda request: (200, {"Connection": "close"}, b"1")
        remote = Remote(RemoteService(url=server.url, tries=3))
        remote.run([remote.post({})])
    with remote, pytest.raises(RemoteError, match="after 3 tries: no reply: ") as caught:
        remote.run([remote.post({})])
    assert (caught.value.is_common, len(waits)) == (False, 2)


def test_the_key_is_nowhere(server: Server) -> None:
    server.answer = lambda request: (400, {}, f"bad key {KEY} {'x' * 178} {KEY}".encode())
    error = str(failure(server))
    assert "bad key *** xxx" in error
    assert KEY[:3] not in error
    assert len(error) < 250
    assert KEY not in repr(RemoteService(url="http://h", api_key=KEY))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host:8000/v1/a@b?token=secret", "https://host:8000/v1/a@b"),
        ("http://host/@b", "http://host/@b"),
        ("me:pass@host", "host"),
        ("localhost:8000/v1", "localhost:8000/v1"),
        ("", ""),
    ],
)
def test_urls_are_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\N{ZERO WIDTH SPACE}"])
def test_a_key_that_no_header_takes_is_refused_unseen(key: str) -> None:
    with pytest.raises(UsageError, match="API key") as caught:
        RemoteService(url="http://h", api_key=key)
    assert KEY not in str(caught.value)


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    monkeypatch.setenv("EMPTY", "")
    assert key_from("MINE") == KEY
    for variable in ("EMPTY", "ABSENT"):
        with pytest.raises(UsageError, match=f"'{variable}' holds no API key"):
            key_from(variable)


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"tries": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}]
)
def test_services_are_checked(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        RemoteService(url="http://h", **options)


def test_httpx_is_loaded_late() -> None:
    modules = ("remote.client", "rewards.http", "rewards.judge", "evaluation.judge")
    names = ", ".join(f"specrej.{module}" for module in modules)
    script = f"import sys, {names}; sys.exit('httpx' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", script], check=False, env=environment).returncode == 0
    )


def test_the_first_failure_ends_the_others(server: Server) -> None:
    ended, together, outcomes = threading.Event(), threading.Barrier(2, timeout=120), []

    def answer(request: dict[str, Any]) -> Any:
        if request["what"] == "fail":
            return 400, {}, b"no"
        outcomes.append(ended.wait(120) if request["what"] == "hang" else together.wait() >= 0)
        return 1

    server.answer = answer
    with Remote(RemoteService(url=server.url, concurrency=2)) as remote:
        with pytest.raises(RemoteError, match="400"):
            remote.run([remote.post({"what": what}) for what in ("hang", "fail", "hang")])
        remote.run([remote.post({"what": "meet"}) for _ in range(2)])
    ended.set()
    wait_until(lambda: server.running == 0)
    assert all(outcomes)


def test_ctrl_c_ends_waiting_at_once(server: Server) -> None:
    ended, outcomes = threading.Event(), []

    def answer(request: dict[str, Any]) -> int:
        if request["hangs"]:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            outcomes.append(ended.wait(120))
        return 1

    server.answer = answer
    with Remote(RemoteService(url=server.url, concurrency=1)) as remote:
        with pytest.raises(KeyboardInterrupt):
            remote.run([remote.post({"hangs": True}) for _ in range(3)])
        assert remote.run([remote.post({"hangs": False})]) == [("1", 1)]
    ended.set()
    wait_until(lambda: server.running == 0)
    assert outcomes == [True]
    assert len(server.requests) == 2


def test_what_is_stopped_before_it_begins_leaves_nothing_behind(server: Server) -> None:
    """Its coroutine was never awaited, which Python warned of."""
    is_held, free = threading.Event(), threading.Event()
    ends: list[str] = []

    async def hold() -> None:
        is_held.set()
        free.wait(120)

    def wait_for_it() -> None:
        with pytest.raises(CancelledError):
            remote.wait(remote.post({}))
        ends.append("cancelled")

    with Remote(RemoteService(url=server.url)) as remote:
        remote.start(hold())
        assert is_held.wait(120)
        threads = [threading.Thread(target=remote.stop), threading.Thread(target=wait_for_it)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)  # both come to the loop while it is held, in this order
        free.set()
        for thread in threads:
            thread.join()
    gc.collect()
    assert ends == ["cancelled"]
    assert server.requests == []


def test_stopping_ends_what_is_under_way_and_lets_nothing_begin(server: Server) -> None:
    asked, ended, outcomes = threading.Event(), threading.Event(), []

    def answer(request: dict[str, Any]) -> int:
        asked.set()
        outcomes.append(ended.wait(120))
        return 1

    def wait_for_it() -> None:
        with pytest.raises(CancelledError):
            remote.run([remote.post({}) for _ in range(3)])
        ended.set()

    server.answer = answer
    with Remote(RemoteService(url=server.url, concurrency=1)) as remote:
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        assert asked.wait(120)
        remote.stop()
        waiting.join()
        with pytest.raises(RemoteError, match="stopped"):
            remote.run([remote.post({})])
    wait_until(lambda: server.running == 0)
    assert (outcomes, len(server.requests)) == ([True], 1)


def test_it_works_where_a_loop_is_running(server: Server) -> None:
    async def in_a_notebook() -> list[Reply]:
        return post(server, {})

    assert asyncio.run(in_a_notebook()) == [("null", 1)]


def wait_until(condition: Any) -> None:
    for _ in range(12_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came about")
