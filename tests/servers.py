"""A real HTTP server in a thread, for whatever asks one: it answers by a function of the request.

with serving() as server:
    server.answer = lambda request: {"scores": [1.0] * len(request["answers"])}
    ...
server.requests     # what it was sent, in the order of arrival
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from specrej.remote.client import Remote

Answer = Callable[[dict[str, Any]], Any]


class Server(ThreadingHTTPServer):
    """Answers a POST by `answer(request)`: what `write` makes a body of, or (status, headers,
    body).

    Attributes:
        requests, keys, paths: of what came so far.
        running, most_running: requests under way, now and at most.
        connected, num_connections: connections that are open, and all there were.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, write: Callable[[Any], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Answer = lambda request: None
        self.write = write
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.paths: set[str] = set()
        self.running = self.most_running = 0
        self.connected = self.num_connections = 0
        self.lock = threading.Lock()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connected += 1
            self.num_connections += 1
        try:
            super().finish_request(request, client_address)
        finally:
            with self.lock:
                self.connected -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone, or an answer that is meant to break the connection: nothing to
        print."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # keeps connections

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.add(self.headers["Authorization"])
            self.server.paths.add(self.path)
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            status, headers, body = self.reply(request)
        finally:
            with self.server.lock:
                self.server.running -= 1
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reply(self, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        answer = self.server.answer(request)
        if isinstance(answer, tuple):
            return cast("tuple[int, dict[str, str], bytes]", answer)
        return 200, {}, self.server.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    write: Callable[[Any], bytes] = lambda answer: json.dumps(answer).encode(),
) -> Iterator[Server]:
    with Server(write) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:  # else the thread would keep a program that failed from ending
            server.shutdown()
            thread.join()


def record_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits between tries from now on; the list holds the seconds that it would have
    been."""
    waits: list[float] = []

    async def pause(remote: Remote, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(Remote, "pause", pause)
    return waits


def completion(text: object, usage: object = None) -> bytes:
    """A chat completion as the endpoints write it."""
    usage = usage or {"prompt_tokens": 100, "completion_tokens": 3}
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    ).encode()
