"""/v1/responses as OpenAI's own client sees it: the chat's answer, said in another form."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openai.types.responses import Response

from answers import answer, result_of
from endpoint import Scripted, client, fake_service, live
from fakes import FakeEngine
from specrej.errors import DeadlineError, EngineError, PromptError, UsageError
from specrej.search.events import Ended, Queued, Text
from specrej.server.asked import Limits, read_request
from specrej.server.protocol import parse_chat
from specrej.server.responding import ResponseWriter
from specrej.server.responses import HONOURED, parse_response
from specrej.settings import Settings
from specrej.types import Result

ASKED: Any = {"model": "bytes", "input": "Why?"}
USER = {"role": "user", "content": "Why?"}
DEFAULTS = Settings(seed=5, max_new_tokens=32)
GOOD = result_of(answer(0, "good", 1.0), best=0)
CUT = result_of(answer(0, "good", 1.0, finish_reason="length"), best=0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service(FakeEngine(eos=0.03))) as url:
        yield url


def parsed(**fields: Any) -> Any:
    return parse_response({**ASKED, **fields}, DEFAULTS)


def events_of(url: str, **fields: Any) -> list[Any]:
    with httpx.stream(
        "POST", f"{url}/v1/responses", json={**ASKED, "stream": True, **fields}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().split("\n\n")
    events: list[Any] = []
    for block in blocks:
        if block and not block.startswith(":"):
            kind, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert kind == f"event: {events[-1]['type']}"
    return events


def test_the_client_at_its_default_is_answered(url: str) -> None:
    response = client(url).responses.create(model="bytes", input="Why?")
    Response.model_validate(response.model_dump(warnings="error"), strict=False)
    assert response.id.startswith("resp_")
    assert (response.object, response.model, response.error) == ("response", "bytes", None)
    assert response.output_text
    [message] = response.output
    assert (message.type, message.role, message.status) == (  # type: ignore[union-attr]
        "message",
        "assistant",
        response.status,
    )
    assert response.model_extra is not None
    assert response.model_extra["specrej"]["num_answers"] == 1


@pytest.mark.parametrize("kind", ["create", "stream"])
def test_the_client_reads_a_stream(url: str, kind: str) -> None:
    asking = client(url).responses
    for seed in range(4):
        more: Any = {"seed": seed, "specrej": {"alpha": 0.8}}
        asked: Any = {**ASKED, "max_output_tokens": 120, "extra_body": more}
        whole = asking.create(**asked)
        if kind == "create":
            with asking.create(**asked, stream=True) as stream:
                events = list(stream)
            final: Any = events[-1].response
        else:
            with asking.stream(**asked) as followed:
                events = list(followed)
                final = followed.get_final_response()
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text == final.output_text
        assert final.usage == whole.usage
        assert [event.sequence_number for event in events] == list(range(len(events)))


@hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(["bb", "é", " ", "cab"]), max_size=2),
    st.integers(1, 30),
    st.sampled_from(["budget", "every:3"]),
)
def test_a_response_is_what_a_chat_says(
    url: str, seed: int, stop: list[str], length: int, decide: str
) -> None:
    same: Any = {"model": "bytes", "seed": seed, "stop": stop, "temperature": 0.9, "top_p": 0.95}
    same["specrej"] = {"decide": decide, "alpha": 0.7, "return": ["decisions"]}
    system = {"role": "system", "content": "Be brief."}
    chat = httpx.post(
        f"{url}/v1/chat/completions",
        json={**same, "messages": [system, USER], "max_tokens": length, "logprobs": True},
    ).json()
    asked = {**same, "instructions": "Be brief.", "input": "Why?", "max_output_tokens": length}
    asked["include"] = ["message.output_text.logprobs"]
    response = httpx.post(f"{url}/v1/responses", json=asked).json()
    [choice], [message] = chat["choices"], response["output"]
    [part] = message["content"]
    assert part["text"] == choice["message"]["content"]
    assert part["logprobs"] == choice["logprobs"]["content"]
    is_cut = choice["finish_reason"] == "length"
    assert response["status"] == ("incomplete" if is_cut else "completed")
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    told = response["usage"]
    assert [told[name] for name in ("input_tokens", "output_tokens", "total_tokens")] == list(
        chat["usage"].values()
    )
    for own in (chat["specrej"], response["specrej"]):
        own.pop("seconds")
    assert response["specrej"] == chat["specrej"]
    deltas = [one["delta"] for one in events_of(url, **asked) if one["type"].endswith("delta")]
    assert "".join(deltas) == part["text"]


@pytest.mark.parametrize("result", [GOOD, CUT])
def test_the_events_are_openais_in_their_order(result: Result) -> None:
    with live(Scripted([Queued(num_ahead=0), Text("go"), Text("o"), Ended(result)])) as url:
        events = events_of(url, metadata={"job": "7"})
    status = "incomplete" if result is CUT else "completed"
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{status}",
    ]
    assert [event["delta"] for event in events[4:7]] == ["go", "o", "d"]
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], last["status"]) == ("in_progress", [], status)
    assert first["id"] == last["id"]
    assert last["output"] == [events[-2]["item"]]
    assert last["metadata"] == first["metadata"] == {"job": "7"}
    assert events[2]["item"]["id"] == events[4]["item_id"] == last["output"][0]["id"]
    assert events[2]["item"]["content"] == []


def test_nothing_is_said_of_an_answer_that_is_not_certain() -> None:
    with live(Scripted([Queued(num_ahead=0), Ended(GOOD)])) as url:
        told = events_of(url, specrej={"progress": True})
    assert [event["type"] for event in told][:4] == [
        "response.created",
        "response.in_progress",
        "specrej.progress",
        "response.output_item.added",
    ]
    assert told[2]["progress"]["kind"] == "queued"


def test_the_client_is_not_put_out_by_progress(url: str) -> None:
    asked: Any = {**ASKED, "extra_body": {"specrej": {"progress": True}, "stop": ["zzz"]}}
    with client(url).responses.stream(**asked, max_output_tokens=120) as stream:
        kinds = [event.type for event in stream]
    assert "specrej.progress" in kinds
    assert kinds[-1].startswith("response.")


@pytest.mark.parametrize(
    ("error", "code"), [(DeadlineError("late", hint="wait"), "deadline"), (EngineError("x"), "eng")]
)
def test_the_client_hears_of_an_error_in_a_stream(error: Any, code: str) -> None:
    with live(Scripted([Text("go"), Ended(error)])) as url:
        last = events_of(url)[-1]
        assert last["type"] == "error"
        assert last["code"].startswith(code)
        assert last["error"]["message"] == last["message"]
        with pytest.raises(openai.APIError, match=last["message"][:10]):
            list(client(url).responses.create(**ASKED, stream=True))


def test_what_breaks_in_a_stream_ends_it_in_order() -> None:
    with live(Scripted([Text("bad"), Ended(GOOD)])) as url:
        events = events_of(url)
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "internal")


def test_an_answer_can_be_sent_back(url: str) -> None:
    asking = client(url).responses
    first = asking.create(**ASKED, max_output_tokens=20)
    history: Any = [USER, *first.output, {"role": "user", "content": "And then?"}]
    second = asking.create(model="bytes", input=history)
    assert second.output_text
    dumped: Any = [USER, *(item.model_dump() for item in first.output), history[-1]]
    assert parsed(input=dumped).prompt == [
        USER,
        {"role": "assistant", "content": first.output_text},
        history[-1],
    ]


def test_a_body_is_read_as_the_chat_that_it_means() -> None:
    parts = [{"type": "input_text", "text": "Wh"}, {"type": "input_text", "text": "y?"}]
    own = {"n": 6, "return": ["rewards"]}
    given = parsed(
        instructions="Be brief.",
        input=[{"type": "message", "role": "user", "content": parts, "status": "completed"}],
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.25,
        seed=3,
        stop=["a"],
        specrej=own,
    )
    chat = parse_chat(
        {
            "model": "bytes",
            "messages": [{"role": "system", "content": "Be brief."}, USER],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.25,
            "seed": 3,
            "stop": ["a"],
            "specrej": own,
        },
        DEFAULTS,
    )
    for name in ("model", "prompt", "settings", "num_answers", "has_logprobs", "returned"):
        assert getattr(given, name) == getattr(chat, name)
    assert parsed(input=[{"role": "developer", "content": "Hm."}, USER]).prompt == [
        {"role": "system", "content": "Hm."},
        USER,
    ]


def test_what_asks_for_nothing_is_taken() -> None:
    nothing: dict[str, list[Any]] = {
        "store": [False, None],
        "background": [False],
        "truncation": ["disabled"],
        "tools": [[]],
        "tool_choice": ["auto", "none"],
        "parallel_tool_calls": [True, False],
        "service_tier": ["auto", "default"],
        "previous_response_id": [None],
        "conversation": [None],
        "text": [{}, {"format": {"type": "text"}}, {"verbosity": "medium"}],
        "reasoning": [{}, {"effort": None, "summary": None}],
        "include": [[], ["reasoning.encrypted_content"]],
        "top_logprobs": [0],
        "instructions": [""],
    }
    for name, values in nothing.items():
        for value in values:
            assert parsed(**{name: value}).settings == parsed().settings, (name, value)
            assert parsed(**{name: value}).prompt == parsed().prompt


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"store": True}, "^store cannot be honoured, got True"),
        ({"previous_response_id": "resp_1"}, "^previous_response_id cannot be honoured"),
        ({"conversation": "c"}, "^conversation cannot be honoured"),
        ({"background": True}, "^background cannot be honoured"),
        ({"truncation": "auto"}, "^truncation cannot be honoured"),
        ({"tools": [{"type": "web_search"}]}, "^tools cannot be honoured"),
        ({"tool_choice": "required"}, "^tool_choice cannot be honoured"),
        ({"messages": [USER]}, "^messages cannot be honoured"),
        ({"max_tokens": 5}, "^max_tokens cannot be honoured"),
        ({"n": 2}, "^n cannot be honoured"),
        ({"text": 5}, "^text must be an object"),
        ({"text": {"shape": 1}}, "^text.shape cannot be honoured"),
        ({"text": {"format": {"type": "no_such"}}}, r"^text\.format"),
        ({"reasoning": {"summary": "auto"}}, "^reasoning.summary cannot be honoured"),
        ({"include": ["everything"]}, "^include must be a list of names"),
        ({"instructions": ["a"]}, "^instructions must be a text"),
        ({"max_output_tokens": 0}, "^max_output_tokens must be at least 1"),
        ({"temperature": -1}, "^temperature must be"),
        ({"specrej": {"alpha": 2}}, r"^specrej.alpha must be"),
        ({"input": 5}, "^input must be a text or a list of messages, got 5"),
        ({"input": None}, "^input must be a text or a list"),
        ({"input": ""}, "^the prompt is empty"),
        ({"input": [5]}, r"^input\[0\] must be an object"),
        ({"input": [USER, {"role": "human", "content": "x"}]}, r"^input\[1\].role must be one"),
        (
            {"instructions": "Hm.", "input": [{"role": "human", "content": "x"}]},
            r"^input\[0\].role must be one",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            r"^input\[0\].content\[0\] must be a text",
        ),
        (
            {"input": [{"type": "item_reference", "id": "msg_1"}]},
            r"^input\[0\].type must be message, got 'item_reference'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_this_bodys_name(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parsed(**fields)
    assert "max_tokens," not in str(caught.value.hint)
    assert isinstance(caught.value, PromptError) == ("input" in fields or "instructions" in fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x" * 500}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"shape": 1}}, "text.shape"),
        ({"include": [5]}, "include"),
    ],
)
def test_the_client_hears_which_field_it_is(url: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).responses.create(**{**ASKED, **fields})
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")
    assert "max_tokens" not in caught.value.message


def test_what_is_honoured_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        parsed(colour=1)
    assert set(str(caught.value.hint).partition("honoured are ")[2].split(", ")) == HONOURED


def test_a_request_without_a_seed_has_one_and_says_which(url: str) -> None:
    response = client(url).responses.create(**ASKED)
    own = (response.model_extra or {})["specrej"]
    again = client(url).responses.create(**ASKED, extra_body={"seed": own["seed"]})
    assert again.output_text == response.output_text


@pytest.mark.parametrize("name", ["metadata", "user", "safety_identifier", "prompt_cache_key"])
def test_a_label_that_cannot_be_said_again_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} cannot be said again"):
        parsed(**{name: {"a": json.loads("1e999")}})


def said(**fields: Any) -> dict[str, Any]:
    """The response before there is an answer."""
    asked = read_request("/v1/responses", {**ASKED, "stream": True, **fields}, DEFAULTS, Limits())
    writer = ResponseWriter(asked=asked, id="resp_1", created=0, model="bytes")
    response: dict[str, Any] = json.loads(next(writer.begin()).partition(b"data: ")[2])["response"]
    return response


def test_a_response_says_again_what_format_and_effort_were_asked_for() -> None:
    text = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    response = said(text={**text, "verbosity": None}, reasoning={"effort": "low"})
    assert response["text"] == text
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert said()["text"] == said(text={"format": None})["text"] == {"format": {"type": "text"}}
