"""Answers of a reasoning model over HTTP: what it thought stands beside its answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from calling import END, TOOL, CallingEngine, ScriptReader
from endpoint import DEFAULTS, client, fake_service, live
from fakes import FakeReward
from specrej.errors import UsageError
from specrej.hub.thinking import Thinking
from specrej.server import bodies, replies
from specrej.server.protocol import parse_chat, parse_text
from specrej.server.reasoning import num_thought_tokens
from specrej.server.responses import parse_response
from specrej.settings import Settings
from specrej.types import Candidate, Piece, Prompt

USER: Any = {"role": "user", "content": "What is 6 times 7?"}
CHAT: Any = {"model": "bytes", "messages": [USER], "stop": END, "max_tokens": 200, "seed": 3}
TEXT = "<think>\nIt is 40 and 2.\n</think>\n\nIt is 42."
CALL = '<think>I ask.</think>\n<tool_call>{"name": "weather", "arguments": {}}</tool_call>'


class ThinkingEngine(CallingEngine):
    """Writes a thought and an answer."""

    def detokenizer(self, prompt: Prompt) -> ScriptReader:
        reader: Any = super().detokenizer(prompt)
        reader.thinking = Thinking("<think>", "</think>")
        return reader  # type: ignore[no-any-return]


class Seen(FakeReward):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        super().__init__(self._note)

    def _note(self, text: str) -> float:
        self.texts.append(text)
        return float(len(text))


@contextmanager
def serving(*script: str, reward: Any = None) -> Iterator[str]:
    service = fake_service(ThinkingEngine("hermes", script), reward or FakeReward())
    with live(service, defaults=replace(DEFAULTS, memory=20_000)) as url:
        yield url


def test_the_thought_is_beside_the_answer() -> None:
    with serving(TEXT) as url:
        body = httpx.post(f"{url}/v1/chat/completions", json=CHAT).json()
        replies.ChatCompletion.model_validate(body)
        message = body["choices"][0]["message"]
        assert message["content"] == "It is 42."
        assert message["reasoning_content"] == "It is 40 and 2."
        replayed = {**CHAT, "messages": [USER, message, USER]}
        assert httpx.post(f"{url}/v1/chat/completions", json=replayed).status_code == 200
        text = {"model": "bytes", "prompt": "?", "stop": END, "max_tokens": 200}
        whole = httpx.post(f"{url}/v1/completions", json=text).json()
        assert whole["choices"][0]["text"] == TEXT


PIECES = ["\n", "It is ", "40", "", " and 2", ".</", "think>"]
"""Of a thought and its closing mark, as tokens: the first five are of the thought alone."""


@pytest.mark.parametrize(
    ("script", "num_thought"),
    [
        ([Piece("<think>"), *map(Piece, PIECES), Piece("It is 42.")], 5),
        ([Piece("<thi"), Piece("nk>so"), Piece("so"), Piece("so</think>"), "42"], 1),
        (["<think></think>42"], 0),
        (["<think>\n\n</think>\n\n42"], 0),
        (["42 </think>"], 0),
    ],
)
def test_usage_counts_the_tokens_of_the_thought(script: list[Any], num_thought: int) -> None:
    with serving(*script) as url:
        chat = client(url).chat.completions.create(**CHAT)
        *_, last = client(url).chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        response = client(url).responses.create(**RESPONSE, extra_body=MORE)
        text = {"model": "bytes", "prompt": "?", "stop": END, "max_tokens": 200}
        whole = httpx.post(f"{url}/v1/completions", json=text).json()
    usages: Any = [chat.usage, last.usage]
    for usage in usages:
        assert usage.completion_tokens_details.reasoning_tokens == num_thought
        assert usage.completion_tokens == response.usage.output_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == num_thought
    assert "completion_tokens_details" not in whole["usage"]


@pytest.mark.parametrize("num_answers", [1, 3])
def test_usage_counts_the_thoughts_of_all_answers_that_are_returned(num_answers: int) -> None:
    asked = {**CHAT, "n": num_answers, "specrej": {"algorithm": "best_of_n", "n": 4}}
    with serving(TEXT) as url:
        body = httpx.post(f"{url}/v1/chat/completions", json=asked).json()
    replies.ChatCompletion.model_validate(body)
    assert len(body["choices"]) == num_answers
    details = body["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": num_answers * len("\nIt is 40 and 2.\n")}


def test_all_behind_the_mark_of_an_answer_that_is_cut_inside_its_thought_is_thought() -> None:
    with serving(TEXT) as url:
        body = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "max_tokens": 12}).json()
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12 - len("<think>")


def read(script: list[Any]) -> ScriptReader:
    return ThinkingEngine("hermes", script).detokenizer("")


@pytest.mark.parametrize(
    ("reason", "script", "text", "number"),
    [
        ("eos", ["<think>", "so", ""], "<think>so", 1),
        ("length", ["<think>", "so", ""], "<think>so", 2),
        ("stop", ["<think>", "so", " it", " is", " it"], "<think>so", 1),
        ("eos", ["<think>", "", "\N{REPLACEMENT CHARACTER}</think>", "42", ""], None, 1),
    ],
)
def test_the_end_of_an_answer_is_no_thought(
    reason: Any, script: list[str], text: str | None, number: int
) -> None:
    """The second token of the last is a part of a character that never came."""
    whole = "".join(script) if text is None else text
    answer = Candidate(0, [*range(len(script))], text=whole, finish_reason=reason)
    pieces = [Piece(one) for one in script]
    assert num_thought_tokens(answer, Thinking("<think>", "</think>"), read(pieces)) == number


def test_a_model_without_marks_has_no_count_of_thoughts() -> None:
    service = fake_service(CallingEngine("hermes", [TEXT]), FakeReward())
    with live(service, defaults=replace(DEFAULTS, memory=20_000)) as url:
        chat = httpx.post(f"{url}/v1/chat/completions", json=CHAT).json()
        response = httpx.post(f"{url}/v1/responses", json={**RESPONSE, **MORE}).json()
    assert "completion_tokens_details" not in chat["usage"]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


def test_a_stream_gives_the_same_answer_and_thought() -> None:
    with serving(TEXT) as url:
        chunks = list(client(url).chat.completions.create(**CHAT, stream=True))
    deltas: Any = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "It is 42."
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert [thought for thought in thoughts if thought] == ["It is 40 and 2."]


RESPONSE: Any = {"model": "bytes", "input": "?", "max_output_tokens": 200}
MORE: Any = {"stop": END, "seed": 3}


def test_a_response_has_the_thought_as_an_item_before_the_answer() -> None:
    with serving(TEXT) as url:
        body = httpx.post(f"{url}/v1/responses", json={**RESPONSE, **MORE}).json()
        bodies.Response.model_validate(body)
        thought, message = body["output"]
        assert (thought["type"], thought["summary"], thought["status"]) == (
            "reasoning",
            [],
            "completed",
        )
        assert thought["content"] == [{"type": "reasoning_text", "text": "It is 40 and 2."}]
        assert message["content"][0]["text"] == "It is 42."
        read: Any = client(url).responses.create(**RESPONSE, extra_body=MORE)
        assert [item.type for item in read.output] == ["reasoning", "message"]
        assert read.output_text == "It is 42."
        again: Any = [USER, *read.output, USER]
        asked = {**RESPONSE, "input": again, "extra_body": MORE}
        assert client(url).responses.create(**asked).output_text == "It is 42."


@pytest.mark.parametrize("text", [TEXT, "It is 42.", "<think></think>It is 42."])
@pytest.mark.parametrize("length", [12, 200])
def test_a_streamed_response_has_the_same_items(text: str, length: int) -> None:
    asked: Any = {**RESPONSE, "max_output_tokens": length, "extra_body": MORE}
    with serving(text) as url:
        asking: Any = client(url).responses
        whole = asking.create(**asked).to_dict()["output"]
        events = [event.to_dict() for event in asking.create(**asked, stream=True)]
        with asking.stream(**asked) as stream:
            assert [event.type for event in stream] == [event["type"] for event in events]
    output = events[-1]["response"]["output"]
    assert [{**item, "id": ""} for item in output] == [{**item, "id": ""} for item in whole]
    for kind in ("added", "done"):
        told = [one for one in events if one["type"] == f"response.output_item.{kind}"]
        assert [one["output_index"] for one in told] == list(range(len(output)))
        assert [one["item"]["id"] for one in told] == [item["id"] for item in output]
    assert [one["item"] for one in told] == output
    texts = {item["id"]: "" for item in output}
    for event in events:
        if event["type"].endswith("_text.delta"):
            assert output[event["output_index"]]["id"] == event["item_id"]
            texts[event["item_id"]] += event["delta"]
    assert [*texts.values()] == [item["content"][0]["text"] for item in output]
    thoughts = [item["status"] for item in output if item["type"] == "reasoning"]
    is_cut_inside = length == 12 and "<think>" in text
    assert thoughts == (["incomplete"] if is_cut_inside else ["completed"] * (text == TEXT))


def test_a_thought_in_an_input_is_left_out_and_counted() -> None:
    thought: Any = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None}
    given = [USER, thought, {"role": "assistant", "content": "42"}, USER]
    asked = parse_response({**RESPONSE, "input": given}, Settings())
    assert asked.prompt == [USER, {"role": "assistant", "content": "42"}, USER]
    with pytest.raises(UsageError, match=r"^input\[2\]\.role must be one"):
        parse_response({**RESPONSE, "input": [USER, thought, {"role": "human"}]}, Settings())
    sealed = {**thought, "encrypted_content": "x"}
    with pytest.raises(UsageError, match=r"^input\[1\]\.encrypted_content cannot be honoured"):
        parse_response({**RESPONSE, "input": [USER, sealed]}, Settings())


def test_a_call_behind_a_thought_is_a_call() -> None:
    with serving(CALL) as url:
        create: Any = client(url).chat.completions.create
        choice = create(**CHAT, tools=[TOOL]).choices[0]
        streamed = list(create(**CHAT, tools=[TOOL], stream=True))
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.reasoning_content == "I ask."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == ""


def test_an_answer_without_a_thought_is_as_ever() -> None:
    with serving("It is 42.") as url:
        body = httpx.post(f"{url}/v1/chat/completions", json=CHAT).json()
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "It is 42.",
        "refusal": None,
    }


@pytest.mark.parametrize(("sees", "expected"), [("all", TEXT), ("answer", "It is 42.")])
def test_the_reward_sees_thoughts_or_not(sees: str, expected: str) -> None:
    reward = Seen()
    with serving(TEXT, reward=reward) as url:
        own = {"reward_sees": sees, "decide": "every:20"}
        asked = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "specrej": own})
    assert asked.json()["choices"][0]["message"]["content"] == "It is 42."
    assert "note" not in asked.json()["specrej"]
    assert expected in reward.texts
    assert all(expected.startswith(text) for text in reward.texts)
    assert ("" in reward.texts) == (sees == "answer")


def test_an_engine_that_ends_no_thoughts_says_so_by_the_bodys_name() -> None:
    with serving(TEXT) as url:
        asked = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "thinking_token_budget": 5})
    error = asked.json()["error"]
    assert (asked.status_code, error["param"]) == (400, "thinking_token_budget")
    assert error["message"].startswith("thinking_token_budget cannot be honoured by the engine")


def test_a_default_limit_of_thoughts_gives_way_where_none_can_come() -> None:
    limited, chat = Settings(max_thinking_tokens=5), {"model": "m", "messages": [USER]}
    as_json = {**chat, "response_format": {"type": "json_object"}}
    assert parse_chat(chat, limited).settings.max_thinking_tokens == 5
    assert parse_chat(as_json, limited).settings.max_thinking_tokens is None
    text = parse_text({"model": "m", "prompt": "So"}, limited)
    assert text.settings.max_thinking_tokens is None
    with pytest.raises(UsageError, match=r"^thinking_token_budget must be left out"):
        parse_chat({**as_json, "thinking_token_budget": 7}, limited)
