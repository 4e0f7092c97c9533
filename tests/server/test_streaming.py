"""Streams: honest, in OpenAI's form, and of the same text as the answer without one."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import specrej
from answers import answer, five, result_of
from endpoint import DEFAULTS, Scripted, client, fake_service, lines_of, live
from fakes import ByteReader, FakeEngine, FakeReward
from specrej.errors import DeadlineError, RewardError, ShutdownError
from specrej.search.events import Decided, Ended, Queued, Text, payload_of
from specrej.search.pool import Pool
from specrej.server import streaming
from specrej.server.answering import to_body
from specrej.server.asked import Limits, read_request
from specrej.server.service import Service, StreamEvent
from specrej.server.streaming import Head, blocks
from specrej.types import Result

CHAT: Any = {"model": "bytes", "messages": [{"role": "user", "content": "Why?"}]}
TEXT: Any = {"model": "bytes", "prompt": "Why?"}
GOOD = result_of(answer(0, "good", 1.0), best=0)
QUEUED = Queued(num_ahead=2)


def head_of(body: dict[str, Any], path: str = "/v1/chat/completions") -> Head:
    asked = read_request(
        path, {**(CHAT if "chat" in path else TEXT), "stream": True, **body}, DEFAULTS, Limits()
    )
    return Head(asked=asked, id="c-1", created=17, model="bytes")


async def stream(
    events: AsyncIterator[StreamEvent], head: Head, notes: list[Exception] | None = None
) -> list[bytes]:
    async def finish(result: Result, is_late: bool, place: int) -> dict[str, Any]:
        request = head.asked.request
        body = to_body(
            request, result, completion_id="c-1", created=17, model="bytes", detokenizer=ByteReader
        )
        body["specrej"]["is_late"] = is_late
        return body

    noted: list[Exception] = []
    sent = [block async for block in blocks(events, head, finish, noted.append)]
    if notes is None:
        assert not noted, "what should not have happened"
    else:
        notes += noted
    return sent


def blocks_for(
    events: Sequence[StreamEvent], path: str = "/v1/chat/completions", **body: Any
) -> list[bytes]:
    async def given() -> AsyncIterator[StreamEvent]:
        for event in events:
            yield event

    return asyncio.run(stream(given(), head_of(body, path)))


def data_of(sent: Sequence[bytes]) -> list[Any]:
    """What the data events hold; the last is "[DONE]" where it comes."""
    data = [block.decode().removeprefix("data: ") for block in sent if block.startswith(b"data: ")]
    assert all(block.endswith(b"\n\n") and block.count(b"\n") == 2 for block in sent)
    return [one.strip() if one.startswith("[DONE]") else json.loads(one) for one in data]


def text_in(chunks: Sequence[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks if isinstance(chunk, dict) for choice in chunk["choices"]]
    texts = [
        c["delta"].get("content", "") if "delta" in c else c["text"]
        for c in choices
        if c["index"] == index
    ]
    return "".join(texts)


def test_a_chat_comes_as_role_text_end_and_done() -> None:
    data = data_of(blocks_for([QUEUED, Text("go"), Text("o"), Ended(GOOD)]))
    begin = {"id": "c-1", "object": "chat.completion.chunk", "created": 17, "model": "bytes"}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**begin, "choices": [choice]}

    own = data[4].pop("specrej")
    assert data == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "go"}),
        chunk({"content": "o"}),
        chunk({"content": "d"}),
        chunk({}, "stop"),
        "[DONE]",
    ]
    assert (own["rewards"], own["is_late"]) == ([1.0], False)


def test_a_text_comes_as_text_completions() -> None:
    data = data_of(blocks_for([Text("good"), Ended(GOOD, is_late=True)], "/v1/completions"))
    assert [chunk["object"] for chunk in data[:-1]] == ["text_completion"] * 2
    assert [chunk["choices"][0]["text"] for chunk in data[:-1]] == ["good", ""]
    assert data[1]["choices"][0]["finish_reason"] == "stop"
    assert data[1]["specrej"]["is_late"] is True


def test_progress_is_a_comment_unless_it_is_asked_for() -> None:
    sent = blocks_for([QUEUED, Ended(GOOD)])
    assert sent[1] == b': progress {"kind": "queued", "num_ahead": 2}\n\n'
    assert all("progress" not in chunk for chunk in data_of(sent))
    [told] = [
        chunk
        for chunk in data_of(blocks_for([QUEUED, Ended(GOOD)], specrej={"progress": True}))
        if "progress" in chunk
    ]
    assert (told["object"], told["id"], told["choices"]) == ("specrej.progress", "c-1", [])
    assert told["progress"] == payload_of(QUEUED)


def test_progress_with_lines_in_it_stays_one_event() -> None:
    told = Decided(
        number=0,
        cause="schedule",
        num_tokens=4,
        cut=None,
        candidates=(),
        num_rejected=0,
        kv_bytes=8,
        kv_bytes_after=4,
        best=0,
        best_reward=1.0,
        text="a\n\nb\r\u2028",
    )
    bodies: list[dict[str, Any]] = [{}, {"specrej": {"progress": True}}]
    for body in bodies:
        data_of(blocks_for([told, Ended(GOOD)], **body))


def test_usage_comes_last_when_it_is_asked_for() -> None:
    data = data_of(blocks_for([Ended(GOOD)], stream_options={"include_usage": True}))
    assert data[-2]["choices"] == []
    assert data[-2]["usage"]["completion_tokens"] == len(GOOD.best.token_ids)
    assert [chunk["usage"] for chunk in data[:-2]] == [None] * (len(data) - 2)
    for options in (None, {}, {"include_usage": False}, {"include_obfuscation": False}):
        assert all(
            "usage" not in chunk
            for chunk in data_of(blocks_for([Ended(GOOD)], stream_options=options))[:-1]
        )


def test_further_answers_follow_the_best() -> None:
    data = data_of(blocks_for([Text("bett"), Ended(five())], n=2, logprobs=True))
    assert (text_in(data, 0), text_in(data, 1)) == ("better é", "good")
    ends = [chunk for chunk in data[:-1] if chunk["choices"][0]["finish_reason"]]
    assert [end["choices"][0]["index"] for end in ends] == [0, 1]
    assert [("specrej" in end) for end in ends] == [False, True]
    for end, text in zip(ends, ("better é", "good"), strict=True):
        assert "".join(token["token"] for token in end["choices"][0]["logprobs"]["content"]) == text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DeadlineError("late", hint="wait"), "deadline"),
        (RewardError("secret"), "reward_failed"),
        (ShutdownError("end"), "shutting_down"),
    ],
)
def test_an_error_in_a_stream_is_its_last_event(error: Any, code: str) -> None:
    data = data_of(blocks_for([QUEUED, Text("go"), Ended(error)]))
    assert data[-1]["error"]["code"] == code
    assert "secret" not in json.dumps(data)


def broken(error: str) -> Any:
    async def given() -> AsyncIterator[StreamEvent]:
        yield Text("go")
        if error == "events":
            raise ValueError("secret")
        yield Text("bad") if error == "text" else Text("od")
        yield Ended(
            GOOD
            if error == "text"
            else result_of(answer(0, "good", None, finish_reason="lost"), best=0)
        )

    return given()


@pytest.mark.parametrize("error", ["events", "text", "finish"])
def test_whatever_goes_wrong_behind_the_first_byte_is_the_last_event(error: str) -> None:
    notes: list[Exception] = []
    data = data_of(asyncio.run(stream(broken(error), head_of({}), notes)))
    assert text_in(data[:-1]).startswith("go")
    assert data[-1]["error"]["code"] == "internal"
    assert "[DONE]" not in data
    assert "secret" not in json.dumps(data)
    assert len(notes) == 1


def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.01)

    async def slow() -> AsyncIterator[StreamEvent]:
        await asyncio.sleep(0.1)
        yield Text("good")
        yield Ended(GOOD)

    sent = asyncio.run(stream(slow(), head_of({})))
    assert sent[1] == b": keep-alive\n\n"
    assert text_in(data_of(sent)) == "good"


@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(["bb", "é", " ", "cab", "dde"]), max_size=2),
    st.sampled_from([0.01, 0.06, 0.3]),
    st.sampled_from(["budget", "every:3", "every:7"]),
    st.integers(1, 3),
)
def test_the_stream_is_the_answer(
    seed: int, stop: list[str], eos: float, decide: str, n: int
) -> None:
    body = {"seed": seed, "stop": stop or None, "n": n, "specrej": {"decide": decide, "alpha": 0.7}}

    async def run() -> list[bytes]:
        service = Service(FakeEngine(eos=eos), FakeReward(), Pool(30_000))
        service.start()
        head = head_of(body)
        request = head.asked.request
        ticket = service.submit(request.prompt, request.settings, deadline_s=60, is_watched=True)
        try:
            return await stream(aiter(ticket), head)
        finally:
            await service.stop(0)

    data = data_of(asyncio.run(run()))
    options: dict[str, Any] = head_of(body).asked.request.settings.to_dict()
    result = specrej.generate(
        CHAT["messages"], model=FakeEngine(eos=eos), reward=FakeReward(), **options
    )
    assert text_in(data) == result.text
    assert data[-1] == "[DONE]"


def test_the_client_reads_a_stream() -> None:
    with live(fake_service(FakeEngine(eos=0.02))) as url:
        asking = client(url).chat.completions
        for seed in range(5):
            whole = asking.create(
                **CHAT, seed=seed, max_tokens=40, extra_body={"specrej": {"alpha": 0.8}}
            )
            with asking.create(
                **CHAT,
                seed=seed,
                max_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"specrej": {"alpha": 0.8}},
            ) as chunks:
                seen = list(chunks)
            assert seen[0].choices[0].delta.role == "assistant"
            told = "".join(chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices)
            assert told == whole.choices[0].message.content
            assert seen[-1].usage == whole.usage
            assert seen[-2].choices[0].finish_reason == whole.choices[0].finish_reason
            assert seen[-2].model_extra is not None
            assert (
                seen[-2].model_extra["specrej"]["rewards"]
                == whole.model_extra["specrej"]["rewards"]
            )


def test_the_client_can_ask_for_progress() -> None:
    with live(fake_service()) as url:
        chunks = list(
            client(url).chat.completions.create(
                **CHAT, stream=True, extra_body={"specrej": {"progress": True}}
            )
        )
    kinds = [
        chunk.model_extra["progress"]["kind"]
        for chunk in chunks
        if chunk.object == "specrej.progress"
    ]
    assert kinds[:2] == ["queued", "started"]
    assert "decision" in kinds


def test_the_client_hears_of_an_error_in_a_stream() -> None:
    with live(
        Scripted([QUEUED, Text("go"), Ended(DeadlineError("time is up", hint="wait"))])
    ) as url:
        chunks = client(url).chat.completions.create(**CHAT, stream=True)
        with pytest.raises(openai.APIError, match="time is up"):
            list(chunks)


def test_a_stream_says_that_it_is_one_and_is_not_to_be_kept() -> None:
    with live(Scripted([Text("good"), Ended(GOOD)])) as url:
        response = httpx.post(f"{url}/v1/completions", json={**TEXT, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    assert response.text.endswith("data: [DONE]\n\n")


def test_a_stream_that_goes_wrong_inside_ends_in_order_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.INFO, "specrej.server"),
        live(Scripted([Text("bad"), Ended(GOOD)])) as url,
    ):
        response = httpx.post(f"{url}/v1/completions", json={**TEXT, "stream": True})
    assert (
        json.loads(response.text.splitlines()[-2].removeprefix("data: "))["error"]["code"]
        == "internal"
    )
    logged = [json.loads(line) for line in lines_of(caplog)]
    [failure] = [line for line in logged if line["event"] == "failure"]
    [request] = [line for line in logged if line["event"] == "request"]
    assert failure["exception"][0]["type"] == "RuntimeError"
    assert failure["request_id"] == request["request_id"] == response.headers["x-request-id"]
    assert request["error"] == "internal"


def test_only_streams_are_watched() -> None:
    scripted = Scripted([Ended(GOOD)])
    with live(scripted) as url:
        for is_streamed in (True, False):
            httpx.post(f"{url}/v1/completions", json={**TEXT, "stream": is_streamed, "seed": 1})
    assert [
        (prompt, settings.seed, is_watched) for prompt, settings, _, is_watched in scripted.asked
    ] == [
        ("Why?", 1, True),
        ("Why?", 1, False),
    ]
