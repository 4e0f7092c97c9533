"""What is documented at /docs and /openapi.json is what the server takes and gives."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from endpoint import fake_service, live
from specrej.server import bodies, replies, responses, schema
from specrej.server.asked import READERS
from specrej.server.protocol import _HONOURED, _LABELS, ENDPOINTS

CHAT: Any = {"model": "bytes", "messages": [{"role": "user", "content": "Why?"}]}
TEXT: Any = {"model": "bytes", "prompt": "Why?"}
RESPONSE: Any = {"model": "bytes", "input": "Why?"}
SCORE: Any = {"model": "bytes", "prompt": "Why?", "answers": ["So.", "Because."]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service()) as url:
        yield url


def test_what_is_documented_is_what_is_honoured() -> None:
    server_side = {"stream", "stream_options"}
    documented: dict[str, tuple[str, type[BaseModel]]] = {
        "/v1/chat/completions": ("chat", schema.ChatRequest),
        "/v1/completions": ("text", schema.TextRequest),
    }
    assert documented.keys() == ENDPOINTS.keys()
    for kind, model in documented.values():
        fields = set(model.model_json_schema(by_alias=True)["properties"])
        assert fields - _LABELS == _HONOURED[kind] | server_side
    fields = set(bodies.ResponseRequest.model_json_schema(by_alias=True)["properties"])
    assert fields - _LABELS == responses.HONOURED | server_side
    assert bodies.BODIES.keys() == {*READERS, "/v1/score"}


def test_our_documented_fields_are_those_that_are_known(url: str) -> None:
    fields = set(schema.Own.model_json_schema(by_alias=True)["properties"])
    refused = httpx.post(f"{url}/v1/completions", json={**TEXT, "specrej": {"?": 1}}).json()[
        "error"
    ]["message"]
    assert set(refused.partition("known: ")[2].split(", ")) == fields


def test_a_field_that_is_refused_lists_the_documented_ones(url: str) -> None:
    for path, body, model in (
        ("completions", TEXT, schema.TextRequest),
        ("chat/completions", CHAT, schema.ChatRequest),
        ("responses", RESPONSE, bodies.ResponseRequest),
        ("score", SCORE, bodies.ScoreRequest),
    ):
        fields = set(model.model_json_schema(by_alias=True)["properties"])
        refused = httpx.post(f"{url}/v1/{path}", json={**body, "?": 1}).json()["error"]["message"]
        assert set(refused.partition("honoured are ")[2].split(", ")) == fields - _LABELS


def test_answers_are_as_documented(url: str) -> None:
    everything = {
        "n": 2,
        "logprobs": True,
        "specrej": {"return": ["rewards", "decisions", "candidates"]},
    }
    replies.ChatCompletion.model_validate(
        httpx.post(f"{url}/v1/chat/completions", json={**CHAT, **everything}).json()
    )
    replies.TextCompletion.model_validate(httpx.post(f"{url}/v1/completions", json=TEXT).json())
    included = {"include": ["message.output_text.logprobs"], "metadata": {"job": "1"}}
    bodies.Response.model_validate(
        httpx.post(f"{url}/v1/responses", json={**RESPONSE, **included}).json()
    )
    bodies.ScoreList.model_validate(httpx.post(f"{url}/v1/score", json=SCORE).json())
    replies.ErrorBody.model_validate(httpx.post(f"{url}/v1/completions", json={}).json())
    replies.ModelList.model_validate(httpx.get(f"{url}/v1/models").json())


def test_the_document_is_whole_and_the_docs_need_no_script(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        *bodies.BODIES,
        "/v1/models",
        "/v1/models/{name}",
        "/health",
        "/metrics",
    }
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert "422" not in json.dumps(document)
    page = httpx.get(f"{url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert not re.search(r"https?://", page.text)
    assert "max_completion_tokens" in page.text
