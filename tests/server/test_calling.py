"""Calls of functions over HTTP, as OpenAI's client reads them: whole and streamed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from calling import END, TOOL, CallingEngine
from endpoint import DEFAULTS, Scripted, client, fake_service, lines_of, live
from fakes import FakeReward
from specrej.errors import PromptError, UsageError
from specrej.server import replies
from specrej.server.protocol import parse_chat
from specrej.types import Conversation, Piece

USER: Any = {"role": "user", "content": "What is the weather?"}
CHAT: Any = {"model": "bytes", "messages": [USER], "stop": END, "max_tokens": 250}
ARGUMENTS = '{"city": "Paris, </tool_call> é"}'
HERMES_CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
LLAMA_CALL = f'{{"name": "weather", "parameters": {ARGUMENTS}}}'
MISTRAL_CALL = f'[{{"name": "weather", "arguments": {ARGUMENTS}}}]'
SCRIPTS: dict[str, tuple[str, list[Any], str | None]] = {
    "hermes": ("hermes", [HERMES_CALL], None),
    "behind a text": ("hermes", [f"I look: <b>.\n\n{HERMES_CALL}"], "I look: <b>."),
    "llama3": ("llama3", [LLAMA_CALL], None),
    "python tag": ("llama3", [Piece("", "<|python_tag|>"), LLAMA_CALL], None),
    "mistral": ("mistral", [Piece("", "[TOOL_CALLS]"), MISTRAL_CALL], None),
}


@contextmanager
def serving(family: str, *script: str | Piece, **options: Any) -> Iterator[str]:
    service = fake_service(CallingEngine(family, script), FakeReward())
    defaults = replace(DEFAULTS, memory=20_000)
    with live(service, **{"defaults": defaults, **options}) as url:
        yield url


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_call_is_a_call_and_can_be_replayed(name: str) -> None:
    family, script, content = SCRIPTS[name]
    with serving(family, *script) as url:
        create = client(url).chat.completions.create
        given: Any = {**CHAT, "tools": [TOOL], "seed": 3}
        choice = create(**given).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", content)
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "weather",
            json.loads(ARGUMENTS),
        )
        assert len(call.id) == 9
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        replayed = [USER, choice.message.model_dump(), result]
        assert create(**{**given, "messages": replayed}).choices[0].finish_reason == "tool_calls"
        assert create(**given, tool_choice="none").choices[0].finish_reason == "stop"
        replies.ChatCompletion.model_validate(
            httpx.post(f"{url}/v1/chat/completions", json=given).json()
        )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stream_gives_the_same_call(name: str) -> None:
    family, script, content = SCRIPTS[name]
    with serving(family, *script) as url:
        given: Any = {**CHAT, "tools": [TOOL], "seed": 3}
        chunks = list(client(url).chat.completions.create(**given, stream=True))
        choices = [chunk.choices[0] for chunk in chunks]
        assert "".join(choice.delta.content or "" for choice in choices) == (content or "")
        [calls] = [choice.delta.tool_calls for choice in choices if choice.delta.tool_calls]
        assert (calls[0].index, calls[0].type, len(calls)) == (0, "function", 1)
        assert calls[0].function is not None
        assert calls[0].function.name == "weather"
        assert json.loads(calls[0].function.arguments or "") == json.loads(ARGUMENTS)
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [
            "tool_calls"
        ]


def test_a_text_streams_with_tools_as_without() -> None:
    text = "A set {1} of <b>bold</b> words, and [no] <tool_call> at all."
    for family in ("hermes", "llama3", "mistral"):
        with serving(family, text) as url:
            create: Any = client(url).chat.completions.create
            for tools in ([], [TOOL]):
                chunks = list(create(**CHAT, tools=tools, stream=True, seed=1))
                joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                assert joined == text
                assert chunks[-1].choices[0].finish_reason == "stop"


def test_each_answer_has_calls_of_its_own_and_one_where_one_is_asked_for() -> None:
    with serving("hermes", HERMES_CALL, "\n", HERMES_CALL) as url:
        create = client(url).chat.completions.create
        given: Any = {
            **CHAT,
            "tools": [TOOL],
            "n": 2,
            "seed": 1,
            "extra_body": {"specrej": {"n": 2, "algorithm": "best_of_n"}},
        }
        two = create(**given)
        ids = [call.id for choice in two.choices for call in choice.message.tool_calls or []]
        assert (len(ids), len({*ids})) == (4, 4)
        one = create(**given, parallel_tool_calls=False)
        assert [len(choice.message.tool_calls or []) for choice in one.choices] == [1, 1]


def test_an_answer_that_is_cut_says_so() -> None:
    with serving("hermes", HERMES_CALL, " and more") as url:
        given: Any = {**CHAT, "tools": [TOOL], "max_tokens": len(HERMES_CALL) + 3, "seed": 1}
        choice = client(url).chat.completions.create(**given).choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.content == "an"
        assert len(choice.message.tool_calls or []) == 1


def test_a_call_in_the_log_is_a_conversation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="specrej")
    with serving("hermes", HERMES_CALL, logs_prompts=True) as url:
        client(url).chat.completions.create(**{**CHAT, "tools": [TOOL]})
    assert any(json.loads(line).get("prompt") == [USER] for line in lines_of(caplog))


def parse(**body: Any) -> Any:
    return parse_chat({**CHAT, **body}, DEFAULTS)


def test_a_body_makes_a_conversation_of_what_it_gives_the_template() -> None:
    assert parse().prompt == [USER]
    assert parse(tools=[TOOL], tool_choice="none").prompt == [USER]
    asked = parse(
        tools=[TOOL], chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low"
    )
    assert isinstance(asked.prompt, Conversation)
    assert asked.prompt.template_arguments == {"enable_thinking": False, "reasoning_effort": "low"}
    [tool] = asked.prompt.tools
    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


def test_a_prefix_continues_the_last_message() -> None:
    begun = {"role": "assistant", "content": "It", "prefix": True}
    assert parse(messages=[USER, begun]).prompt == [USER, begun]
    assert parse(messages=[USER, begun], add_generation_prompt=False).prompt == [USER, begun]
    parse(messages=[USER, {**begun, "prefix": False}], continue_final_message=True)
    with pytest.raises(UsageError, match=r"^add_generation_prompt cannot be honoured"):
        parse(messages=[USER, begun], add_generation_prompt=True)
    with pytest.raises(PromptError, match=r"^messages\[1\].prefix cannot be honoured"):
        parse(messages=[USER, begun, USER])
    with pytest.raises(PromptError, match=r"^messages\[0\].prefix cannot be honoured"):
        parse(messages=[{**USER, "prefix": True}])


def function(**changes: Any) -> list[Any]:
    return [{**TOOL, "function": {**TOOL["function"], **changes}}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tool_choice": "any"}, "tool_choice cannot be honoured, got 'any'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice cannot be honoured"),
        ({"parallel_tool_calls": 2}, "parallel_tool_calls cannot be honoured"),
        ({"tools": {}}, "tools must be a list"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\] must be a function"),
        ({"tools": [TOOL, TOOL]}, "tools must have names of their own"),
        ({"tools": [{**TOOL, "more": 1}]}, r"tools\[0\].more cannot be honoured"),
        ({"tools": function(more=1)}, r"tools\[0\].function.more cannot be honoured"),
        ({"tools": function(strict=True)}, r"tools\[0\].function.strict cannot be honoured"),
        ({"tools": function(name="<|im_end|>")}, r"tools\[0\].function.name must be 1 to 64"),
        ({"tools": function(name="x" * 65)}, r"tools\[0\].function.name must be 1 to 64"),
        ({"tools": function(description=1)}, r"tools\[0\].function.description must be a text"),
        ({"tools": function(parameters=[1])}, r"tools\[0\].function.parameters must be an"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
        ({"reasoning_effort": 1}, "reasoning_effort must be a text"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "reasoning_effort is given twice",
        ),
    ],
)
def test_what_cannot_be_honoured_of_tools_is_refused_by_name(body: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        parse(**body)


def test_an_argument_that_the_template_refuses_is_named_as_in_the_body() -> None:
    class Refusing(CallingEngine):
        def encode(self, prompt: Any) -> list[int]:
            raise PromptError("thinking cannot be honoured: no")

    with live(Scripted(engine=Refusing("hermes", []))) as url:
        body = {**CHAT, "chat_template_kwargs": {"thinking": True}}
        refused = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (
            400,
            "chat_template_kwargs.thinking",
        )
