"""Who may ask, and how much: keys, origins, hosts, and the sizes of bodies, prompts and answers."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from endpoint import DEFAULTS, Scripted, client, fake_service, live
from specrej.errors import PromptError, UsageError
from specrej.server.asked import Limits, parse_json, read_request
from specrej.server.guard import Gate
from specrej.server.protocol import _HONOURED

CHAT: Any = {"model": "bytes", "messages": [{"role": "user", "content": "Why?"}]}
TEXT: Any = {"model": "bytes", "prompt": "Why?"}
LIMITS = Limits(body_bytes=2_000, prompt_tokens=50, candidates=20, new_tokens=30, deadline_s=10)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service(), limits=LIMITS) as url:
        yield url


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with live(fake_service(), keys=["first-key", "second-key"]) as url:
        yield url


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# Keys


def test_a_server_with_keys_wants_one_of_them(locked: str) -> None:
    for key in ("first-key", "second-key"):
        assert client(locked, api_key=key).completions.create(**TEXT).choices
    for key in ("first-ke", "first-keyy", "FIRST-KEY", "first-key,second-key"):
        with pytest.raises(openai.AuthenticationError, match="no API key of this server") as caught:
            client(locked, api_key=key).completions.create(**TEXT)
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "given", [None, "", "first-key", "Basic first-key", "Bearer", b"Bearer \xe9"]
)
def test_a_key_is_a_bearer(locked: str, given: Any) -> None:
    headers = {} if given is None else {"Authorization": given}
    assert error_of(httpx.get(f"{locked}/v1/models", headers=headers)) == (401, "invalid_api_key")


def test_keys_guard_the_api_and_the_metrics_not_what_is_public(locked: str) -> None:
    statuses = {
        path: httpx.get(locked + path).status_code
        for path in ("/health", "/", "/docs", "/openapi.json", "/metrics")
    }
    assert statuses == {
        "/health": 200,
        "/": 200,
        "/docs": 200,
        "/openapi.json": 200,
        "/metrics": 401,
    }
    assert (
        httpx.get(f"{locked}/metrics", headers={"Authorization": "bearer second-key"}).status_code
        == 200
    )
    for path in ("/v1/models", "/v1/models/bytes", "/v1/nowhere"):
        assert httpx.get(locked + path).status_code == 401


def test_a_key_is_not_asked_for_where_there_is_none(url: str) -> None:
    assert client(url, api_key="anything").completions.create(**TEXT).choices


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="printable ASCII") as caught:
        Gate(["good", key], None)
    assert "words" not in str(caught.value)


# Pages of others


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:1", "http://["],
)
def test_a_page_of_another_origin_may_not_ask(url: str, origin: str) -> None:
    response = httpx.post(f"{url}/v1/completions", json=TEXT, headers={"Origin": origin})
    assert error_of(response) == (403, "other_origin")


def test_the_servers_own_page_may_ask(url: str) -> None:
    assert (
        httpx.post(f"{url}/v1/completions", json=TEXT, headers={"Origin": url}).status_code == 200
    )


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/", "/metrics"])
def test_a_name_that_was_made_to_point_here_is_refused(url: str, host: str, path: str) -> None:
    assert error_of(httpx.get(url + path, headers={"Host": host})) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
def test_names_of_this_machine_are_known(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200


def test_any_name_will_do_with_a_key_or_for_all(locked: str) -> None:
    headers = {"Host": "answers.example", "Authorization": "Bearer first-key"}
    assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 200
    with live(Scripted(), hosts=None) as url:
        assert httpx.get(f"{url}/v1/models", headers={"Host": "answers.example"}).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        None,
    ],
)
def test_a_body_must_be_sent_as_json(url: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = httpx.post(
        f"{url}/v1/completions", content=json.dumps(TEXT).encode(), headers=headers
    )
    assert error_of(response) == (415, "unsupported_media_type")


def test_json_may_say_its_encoding(url: str) -> None:
    for kind, status in {
        "application/json; charset=UTF-8": 200,
        "Application/JSON": 200,
        "application/json; charset=latin-1": 415,
    }.items():
        response = httpx.post(
            f"{url}/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": kind}
        )
        assert response.status_code == status, kind


# Sizes


def long_body(num_bytes: int) -> bytes:
    head = json.dumps({**TEXT, "user": ""})[:-2]
    return (head + "x" * (num_bytes - len(head) - 2) + '"}').encode()


@pytest.mark.parametrize(("num_bytes", "status"), [(2_000, 200), (2_001, 413), (15_000, 413)])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_is_read_up_to_its_limit(
    url: str, num_bytes: int, status: int, is_chunked: bool
) -> None:
    body = long_body(num_bytes)
    assert len(body) == num_bytes
    pieces = (body[start : start + 700] for start in range(0, num_bytes, 700))
    response = httpx.post(
        f"{url}/v1/completions", content=pieces if is_chunked else body, headers=JSON
    )
    assert response.status_code == status
    if status == 413:
        assert "2,000 bytes" in response.json()["error"]["message"]


def test_a_body_without_end_is_not_read_to_it(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders(b"x" * 20_000)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"max_tokens": 31}, "max_tokens", "max_tokens must be at most 30 on this server, got 31"),
        ({"n": 21}, "n", "n must be at most 20 on this server, got 21"),
        ({"specrej": {"n": 21}}, "specrej.n", "specrej.n must be at most 20"),
        ({"stop": ["s"] * 17}, "stop", "at most 16 strings"),
        ({"stop": "s" * 129}, "stop", "128 characters"),
        (
            {"prompt": "x" * 50},
            "prompt",
            "prompt must have at most 50 tokens on this server, got 51",
        ),
        ({"specrej": {"deadline_s": 11}}, "specrej.deadline_s", "at most 10 here, got 11"),
        ({"specrej": {"deadline_s": True}}, "specrej.deadline_s", "got True"),
        (
            {"specrej": {"memory": "1" + " " * 1_000 + "!"}},
            "specrej.memory",
            "at most 256 characters",
        ),
        ({"specrej": {"x" * 300: 1}}, None, "at most 256 characters"),
    ],
)
def test_more_than_the_limits_allow_is_refused_by_name(
    url: str, fields: Any, param: str | None, reason: str
) -> None:
    error = httpx.post(f"{url}/v1/completions", json={**TEXT, **fields}).json()["error"]
    assert reason in error["message"]
    if param:
        assert error["param"] == param


def test_what_the_limits_allow_is_done(url: str) -> None:
    fields = {
        "max_tokens": 30,
        "n": 20,
        "prompt": "x" * 49,
        "stop": ["s" * 128, *"rstuvwxyz", *"ABCDEF"],
        "specrej": {"n": 20, "deadline_s": 10},
    }
    assert httpx.post(f"{url}/v1/completions", json={**TEXT, **fields}).status_code == 200


def test_a_prompt_of_a_chat_is_limited_too(url: str) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "x" * 50}]}
    error = httpx.post(f"{url}/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["message"][:8]) == ("messages", "messages")


def test_the_deadline_is_the_servers_unless_it_is_less() -> None:
    scripted = Scripted(error=UsageError("seen"))
    with live(scripted, limits=LIMITS) as url:
        for own in ({}, {"deadline_s": 2}, {"deadline_s": None}):
            httpx.post(f"{url}/v1/completions", json={**TEXT, "specrej": own})
    given_s = [asked[2] for asked in scripted.asked]
    # What was spent before the queue is taken off.
    assert all(0 < given < most for given, most in zip(given_s, [10, 2, 10], strict=True)), given_s


def test_messages_of_errors_are_not_as_long_as_what_was_sent(url: str) -> None:
    response = httpx.post(f"{url}/v1/completions", json={**TEXT, "temperature": "x" * 1_500})
    assert response.status_code == 400
    assert len(response.json()["error"]["message"]) < 700


@pytest.mark.parametrize(
    "name", ["body_bytes", "prompt_tokens", "candidates", "new_tokens", "deadline_s"]
)
def test_limits_are_above_zero(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=f"the limit {name} must be above 0"):
        Limits(**options)


# Junk


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 5_000,
        b'{"a": NaN}',
        b'{"seed": ' + b"9" * 5_000 + b"}",
        b"[]",
        b"null",
        b'"text"',
        b"{'a': 1}",
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"the body is no JSON|the body must be an object"):
        parse_json(raw)


def test_half_a_character_is_named_by_its_place() -> None:
    body = parse_json(b'{"messages": [{"role": "user", "content": "a\\ud800"}]}')
    with pytest.raises(PromptError, match=r"messages\[0\]\.content holds half a surrogate pair"):
        read_request("/v1/chat/completions", body, DEFAULTS, Limits())


def test_junk_gets_a_bad_request(url: str) -> None:
    for raw in (
        b"",
        b"{",
        b"\xff",
        b"[" * 1_900,
        b"[]",
        b'{"prompt": "\\udfff", "model": "bytes"}',
    ):
        response = httpx.post(f"{url}/v1/completions", content=raw, headers=JSON)
        assert error_of(response) == (400, "invalid_value")


HUGE = "1e999"
"""A number in JSON, and infinite in Python."""
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just(HUGE)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*_HONOURED["chat"], *_HONOURED["text"], "stream", "stream_options", "tools"})
OWN = [
    "n",
    "alpha",
    "keep",
    "decide",
    "min_tokens",
    "memory",
    "top_k",
    "return",
    "progress",
    "deadline_s",
    "algorithm",
]


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=4),
    st.dictionaries(st.sampled_from(OWN), JUNK, max_size=3),
)
def test_whatever_is_sent_is_understood_or_refused(
    path: str, fields: dict[str, Any], own: dict[str, Any]
) -> None:
    body = json.dumps({**(CHAT if "chat" in path else TEXT), "specrej": own, **fields}).replace(
        f'"{HUGE}"', HUGE
    )
    try:
        asked = read_request(path, parse_json(body.encode()), DEFAULTS, LIMITS)
    except UsageError:
        return
    assert asked.request.settings.max_new_tokens <= 30
    assert asked.request.num_answers <= 20
    assert 0 < asked.deadline_s <= 10
    assert asked.is_streamed is bool(fields.get("stream"))
