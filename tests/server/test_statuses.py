"""Every code that a request can be told, driven on every path that takes a body: its status is the
one of the table, and the OpenAPI document of the path lists it."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from endpoint import DEFAULTS, Scripted, fake_service, lines_of, live
from fakes import FakeEngine, FakeReward
from specrej.engines.base import Token
from specrej.errors import DeviceMemoryError, EngineError
from specrej.remote.client import RemoteError
from specrej.server import connection, lanes
from specrej.server.app import make_app
from specrej.server.asked import Limits
from specrej.server.endpoints import _NEVER
from specrej.server.refusals import CODES
from specrej.types import SamplingParams

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Why?"}]},
    "/v1/completions": {"prompt": "Why?"},
    "/v1/responses": {"input": "Why?"},
    "/v1/score": {"prompt": "Why?", "answers": ["Air."]},
}
DECODED = [path for path in BODIES if path != "/v1/score"]
HEADERS = {"Content-Type": "application/json"}
DOCUMENT = make_app(Scripted(), model="bytes", defaults=DEFAULTS).openapi()  # type: ignore[arg-type]


def fail(text: str) -> float:
    raise ValueError("no idea")


def slow(text: str) -> float:
    time.sleep(0.5)
    return 1.0


class Failing(FakeEngine):
    """Raises when a prompt is opened, or in every step."""

    def __init__(self, error: Exception, *, at_opening: bool) -> None:
        super().__init__()
        self._error, self._at_opening = error, at_opening

    def open(self, ids: Any, sampling: SamplingParams, budget_bytes: Any) -> int:
        if self._at_opening:
            raise self._error
        return super().open(ids, sampling, budget_bytes)

    def step(self, limits: Any = None) -> list[Token]:
        raise self._error


class Slow(FakeEngine):
    def step(self, limits: Any = None) -> list[Token]:
        time.sleep(0.05)
        return super().step(limits)


class Losing(FakeEngine):
    """Loses all candidates, as a server that is down does."""

    def step(self, limits: Any = None) -> list[Token]:
        tokens = super().step(limits)
        for token in tokens:
            group = self.groups[token.prompt]
            group.live = [index for index in group.live if index != token.candidate]
        failure = EngineError("it does not answer")
        failure.__cause__ = RemoteError("no", status=503)
        lost: dict[str, Any] = {
            "token_id": -1,
            "finish_reason": "lost",
            "reason": "x",
            "cause": failure,
        }
        return [token._replace(**lost) for token in tokens]


def stopped() -> Any:
    service = fake_service()
    service.is_stopping = service.given.is_stopping = True
    return service


SERVICES: dict[str, Callable[[], Any]] = {
    "queue_full": lambda: fake_service(max_queue=0),
    "reward_failed": lambda: fake_service(reward=FakeReward(fail)),
    "out_of_memory": lambda: fake_service(Failing(DeviceMemoryError("x"), at_opening=True)),
    "engine_failed": lambda: fake_service(Failing(RuntimeError("x"), at_opening=False)),
    "shutting_down": stopped,
    "deadline": lambda: fake_service(Slow(eos=0.0), FakeReward(slow)),
}
"""What makes a server say this of a request in which nothing is wrong."""
OPTIONS: dict[str, dict[str, Any]] = {
    "invalid_api_key": {"keys": ["secret"]},
    "deadline": {"limits": Limits(deadline_s=0.2)},
    "body_too_large": {"limits": Limits(body_bytes=20)},
}
HEADED = {
    "other_origin": {"Origin": "http://elsewhere"},
    "unknown_host": {"Host": "elsewhere"},
    "unsupported_media_type": {"Content-Type": "text/plain"},
}
FIELDS: dict[str, dict[str, Any]] = {
    "invalid_value": {"colour": 1},
    "model_not_found": {"model": "gpt"},
}


class Broken(Scripted):
    """Everything that is asked of it raises what nobody foresaw."""

    @property
    def given(self) -> Any:
        raise KeyError("given")


@contextmanager
def made_to_say(code: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that says it."""
    if code == "too_many_bodies":
        monkeypatch.setattr(lanes, "_LANE_BYTES", 0)
    if code == "slow_body":
        monkeypatch.setattr(connection, "_BODY_S", 0.05)
    if code == "internal":
        with live(Broken(error=KeyError("x"))) as url:
            yield url
        return
    service = SERVICES[code]() if code in SERVICES else fake_service()
    with live(service, **OPTIONS.get(code, {})) as url:
        yield url


def slowly(content: bytes) -> Iterator[bytes]:
    yield content[:5]
    time.sleep(0.5)
    yield content[5:]


def saying(path: str) -> list[str]:
    return [
        code
        for code in CODES
        if code not in ("not_found", "method_not_allowed") and code not in _NEVER.get(path, ())
    ]


@pytest.mark.parametrize(
    ("path", "code"), [(path, code) for path in BODIES for code in saying(path)]
)
def test_every_refusal_has_its_status_and_is_documented(
    path: str, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "bytes", **BODIES[path], **FIELDS.get(code, {})}
    content: Any = json.dumps(body).encode()
    with (
        caplog.at_level(logging.INFO, "specrej.server"),
        made_to_say(code, monkeypatch) as url,
    ):
        headers = {**HEADERS, **HEADED.get(code, {})}
        response = httpx.post(
            url + path,
            content=slowly(content) if code == "slow_body" else content,
            headers=headers,
            timeout=60,
        )
    status, _ = CODES[code]
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert str(status) in DOCUMENT["paths"][path]["post"]["responses"]
    assert ("retry-after" in response.headers) == (status == 429)
    lines = [json.loads(line) for line in lines_of(caplog)]
    failures = [line for line in lines if line["event"] == "failure"]
    assert len(failures) == (status in (500, 502)), "what fails inside is logged with its reason"
    assert all(any(one["at"] for one in line["exception"]) for line in failures)


@pytest.mark.parametrize("path", DECODED)
@pytest.mark.parametrize(
    ("engine", "code"),
    [
        (lambda: Failing(RuntimeError("x"), at_opening=True), "engine_failed"),
        (lambda: Failing(EngineError("x"), at_opening=True), "engine_failed"),
        (lambda: Failing(RuntimeError("x"), at_opening=False), "engine_failed"),
        (lambda: Failing(EngineError("x"), at_opening=False), "engine_failed"),
        (lambda: Failing(DeviceMemoryError("x"), at_opening=True), "out_of_memory"),
        (lambda: Failing(DeviceMemoryError("x"), at_opening=False), "out_of_memory"),
        (Losing, "engine_failed"),
    ],
)
def test_what_fails_in_the_engine_has_one_status_wherever_it_does(
    path: str, engine: Callable[[], FakeEngine], code: str
) -> None:
    """And in a stream it is the last event."""
    body = {"model": "bytes", **BODIES[path]}
    with live(fake_service(engine())) as url:
        response = httpx.post(url + path, json=body, timeout=60)
        assert (response.status_code, response.json()["error"]["code"]) == (CODES[code][0], code)
        streamed = httpx.post(url + path, json={**body, "stream": True}, timeout=60)
        assert streamed.status_code == 200
        last = json.loads(streamed.text.rstrip().rpartition("data: ")[2])
        assert last["error"]["code"] == code


def test_an_engine_that_fails_as_a_prompt_is_read_at_the_desk_has_the_same_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unread(FakeEngine):
        def encode(self, prompt: Any) -> list[int]:
            assert threading.current_thread().name == "desk"
            raise EngineError("a server that tokenizes is down")

    with (
        caplog.at_level(logging.INFO, "specrej.server"),
        live(fake_service(Unread())) as url,
    ):
        for path in DECODED:
            response = httpx.post(url + path, json={"model": "bytes", **BODIES[path]})
            assert (response.status_code, response.json()["error"]["code"]) == (
                502,
                "engine_failed",
            )
    assert sum('"failure"' in line for line in lines_of(caplog)) == len(DECODED)


def test_the_log_says_what_the_server_elsewhere_said(caplog: pytest.LogCaptureFixture) -> None:
    """Of the last candidate that was lost there; with no text of it."""
    with caplog.at_level(logging.INFO, "specrej.server"), live(fake_service(Losing())) as url:
        httpx.post(f"{url}/v1/completions", json={"model": "bytes", "prompt": "Why?"})
    [failure] = [line for line in map(json.loads, lines_of(caplog)) if line["event"] == "failure"]
    chain = [(one["type"], one.get("status")) for one in failure["exception"]]
    assert chain == [("EngineError", None), ("EngineError", None), ("RemoteError", 503)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}", "/metrics", "/health"])
def test_other_paths_document_what_keeps_the_gate(path: str) -> None:
    documented = DOCUMENT["paths"][path]["get"]["responses"]
    assert {"200", "403", "500"} <= documented.keys()
    assert ("401" in documented) == (path != "/health")
