"""A server that plays a script: what the page has to bear, without a model.

with serving(Script(make_race())) as url:
    ...  # GET / is the page; POST /v1/chat/completions plays the script

A script is refused by a status, breaks off, waits, or sends an error, as it says.
"""

import json
import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import specrej.server
from specrej.settings import Settings

PAGE = Path(specrej.server.__file__).parent / "page"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
TOKEN_BYTES = 1024
PLAIN_TEXT = "What the model says without selection."
HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script> **bold**'


@dataclass
class Script:
    """What the server says.

    Attributes:
        chunks: data of the stream, in order.
        pause_s: before each chunk.
        is_whole: whether the stream ends as it should, with [DONE].
        rest: bytes that come last.
        status, error, retry_after: a refusal in place of the stream.
        plain_status: that of the plain sample.
        key: without this key, everything but the page is refused.
        asked: bodies received.
        num_gone: streams that the client left.
    """

    chunks: list[dict[str, Any]] = field(default_factory=list)
    pause_s: float = 0.0
    is_whole: bool = True
    rest: bytes = b""
    status: int = 200
    plain_status: int = 200
    error: str = ""
    retry_after: str | None = None
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    num_gone: int = 0


def progress(**payload: Any) -> dict[str, Any]:
    return {
        "object": "specrej.progress",
        "id": "chatcmpl-1",
        "created": 0,
        "model": "scripted",
        "progress": payload,
    }


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **more}


@dataclass
class Runner:
    """A candidate whose reward walks at random; it ends after so many tokens."""

    index: int
    end: int
    reward: float
    length: int = 0
    state: str = "live"
    is_scored: bool = False

    @property
    def text(self) -> str:
        return f"Answer {self.index}, {self.length} tokens. {HOSTILE}"

    def to_dict(self) -> dict[str, Any]:
        """As in the last chunk."""
        return {
            "index": self.index,
            "token_ids": [0] * self.length,
            "text": self.text,
            "reward": round(self.reward, 3),
            "state": self.state,
            "finish_reason": "eos" if self.length == self.end else None,
        }

    def scored(self) -> dict[str, Any]:
        """As in a decision."""
        reward = round(self.reward, 3)
        return {
            "index": self.index,
            "num_tokens": self.length,
            "reward": reward,
            "state": self.state,
        }


def make_race(
    n: int = 24, *, max_tokens: int = 120, every: int = 12, seed: int = 0
) -> list[dict[str, Any]]:
    """The chunks of a race in which every decision rejects half of those that are left, down to
    three."""
    draw = random.Random(seed)
    runners = [
        Runner(index, draw.randint(max_tokens // 2, max_tokens), draw.gauss(0, 1))
        for index in range(n)
    ]
    memory = n * every * TOKEN_BYTES
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        progress(kind="queued", num_ahead=0),
        progress(kind="started", num_candidates=n, prompt_tokens=7, memory_bytes=memory),
    ]
    num_generated = number = 0
    while live := [runner for runner in runners if runner.state == "live"]:
        for runner in live:
            runner.length += 1
            runner.state = "complete" if runner.length == runner.end else "live"
        num_generated += len(live)
        length = live[0].length
        chunks.append(_step(live, num_generated))
        if length % every == 0 or all(runner.state != "live" for runner in live):
            chunks.append(_decision(runners, draw, number, length))
            number += 1
    best = max(
        (runner for runner in runners if runner.state == "complete"),
        key=lambda runner: runner.reward,
    )
    candidates = [runner.to_dict() for runner in runners]
    own = {
        "rewards": [best.reward],
        "generated_tokens": num_generated,
        "candidates": candidates,
        "is_late": False,
    }
    return [*chunks, chunk({"content": best.text}), chunk({}, specrej=own)]


def _step(live: list[Runner], num_generated: int) -> dict[str, Any]:
    left = [runner for runner in live if runner.state == "live"]
    return progress(
        kind="step",
        num_tokens=live[0].length,
        num_live=len(left),
        generated_tokens=num_generated,
        kv_bytes=len(left) * live[0].length * TOKEN_BYTES,
        ended=[runner.index for runner in live if runner.state == "complete"],
    )


def _decision(
    runners: list[Runner], draw: random.Random, number: int, length: int
) -> dict[str, Any]:
    scored = [
        one
        for one in runners
        if one.state == "live" or (one.state == "complete" and not one.is_scored)
    ]
    for one in scored:
        one.reward += draw.gauss(0.25, 0.5)
        one.is_scored = one.state == "complete"
    ordered = sorted(scored, key=lambda one: -one.reward)
    num_kept = max(math.ceil(len(ordered) / 2), min(3, len(ordered)))
    for one in ordered[num_kept:]:
        one.state = "rejected"
    best = max((one for one in runners if one.state != "rejected"), key=lambda one: one.reward)
    is_over = all(one.state != "live" for one in runners)
    return progress(
        kind="decision",
        number=number,
        cause="complete" if is_over else "budget",
        num_tokens=length,
        cut=round(ordered[num_kept - 1].reward, 3) if num_kept < len(ordered) else None,
        candidates=[one.scored() for one in scored],
        kv_bytes=len(scored) * length * TOKEN_BYTES,
        kv_bytes_after=num_kept * length * TOKEN_BYTES,
        best=best.index,
        text=best.text,
    )


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The address of a server that plays the script."""
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    script: ClassVar[Script]

    def do_GET(self) -> None:
        path = PAGE / (self.path.strip("/") or "index.html")
        if self.path == "/v1/models":
            own = {
                "reward": "scripted reward",
                "defaults": Settings(seed=3, max_new_tokens=120).to_dict(),
            }
            self._answer_if_known({"data": [{"id": "scripted", "specrej": own}]})
        elif path.is_file():
            kind = {
                "Content-Type": KINDS[path.suffix],
                "Content-Security-Policy": "default-src 'self'",
            }
            self._send(200, path.read_bytes(), kind)
        else:
            self._send(404, b"", {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.script.asked.append(body)
        if self.script.status != 200:
            self._refuse(self.script.status, self.script.error)
        elif not body.get("stream") and self.script.plain_status != 200:
            self._refuse(self.script.plain_status, "no")
        elif not body.get("stream"):
            message = {"role": "assistant", "content": PLAIN_TEXT}
            self._answer_if_known(
                {
                    "choices": [{"message": message}],
                    "specrej": {"rewards": [0.25]},
                    "usage": {"completion_tokens": 70},
                }
            )
        elif self._is_known():
            self._stream()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in self.script.chunks:
                time.sleep(self.script.pause_s)
                self.wfile.write(f": a comment\n\ndata: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(
                self.script.rest + (b"data: [DONE]\n\n" if self.script.is_whole else b"")
            )
        except OSError:
            self.script.num_gone += 1

    def _is_known(self) -> bool:
        is_known = (
            self.script.key is None or self.headers["Authorization"] == f"Bearer {self.script.key}"
        )
        if not is_known:
            self._refuse(401, "a key is needed")
        return is_known

    def _answer_if_known(self, body: dict[str, Any]) -> None:
        if self._is_known():
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str) -> None:
        wait = {"Retry-After": self.script.retry_after} if self.script.retry_after else {}
        body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        }
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **wait})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
