"""The rule for messages that are more than a role and a text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from specrej.errors import PromptError
from specrej.messages import as_conversation, as_messages, as_texts, prompt_bytes, uses_tools
from specrej.settings import Settings
from specrej.types import Conversation

USER: dict[str, Any] = {"role": "user", "content": "Why?"}


def call(call_id: str | None = "a", arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    labelled = {} if call_id is None else {"id": call_id}
    return {
        **labelled, "type": "function", "function": {"name": "f", "arguments": arguments}, **more
    }  # fmt: skip


def asking(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [*calls], **more}


def result(content: str, call_id: str | None = "a") -> dict[str, Any]:
    labelled = {} if call_id is None else {"tool_call_id": call_id}
    return {"role": "tool", "content": content, **labelled}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_beside_calls_a_content_may_be_null_or_left_out(content: Any) -> None:
    asked = {"role": "assistant", "tool_calls": [call()], **content}
    assert as_messages([USER, asked, result("5")]) == [USER, asking(call()), result("5")]


def test_what_a_turn_of_openais_client_holds_besides_asks_for_nothing() -> None:
    nothing: dict[str, Any] = {
        "annotations": [],
        "audio": None,
        "function_call": None,
        "refusal": None,
        "tool_calls": [],
    }
    turn = {"role": "assistant", "content": "So."}
    assert as_messages([USER, {**turn, **nothing}, USER]) == [USER, turn, USER]
    streamed = asking(call(index=0), **{**nothing, "tool_calls": [call(index=0)]})
    assert as_messages([USER, streamed, result("5")])[1] == asking(call())


def test_a_name_is_kept() -> None:
    named = [{**USER, "name": "Ann"}, {"role": "assistant", "content": "So.", "name": "Bo"}, USER]
    assert as_messages(named) == named
    assert as_messages([{**USER, "name": ""}]) == [USER]


def test_arguments_may_be_an_object_and_are_a_text_from_there_on() -> None:
    [_, asked, _] = as_messages([USER, asking(call(arguments={"é": [1]})), result("")])
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"é": [1]}


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(st.permutations("abcd"), st.integers(1, 4))
def test_results_come_in_the_order_of_the_calls(order: list[str], num_calls: int) -> None:
    """Most chat templates leave out the ids."""
    ids = sorted(order)[:num_calls]
    given = [USER, asking(*map(call, ids)), *(result(i, i) for i in order if i in ids), USER]
    messages = as_messages(given)
    assert [message["content"] for message in messages[2:-1]] == ids
    assert as_messages(messages) == messages


def test_results_without_ids_stay_where_they_are() -> None:
    given = [USER, asking(call(None), call(None)), result("2", None), result("1", None)]
    assert as_messages(given) == given


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([result("5")], r"messages\[0\] is a tool's: no call stands before it"),
        ([USER, result("5")], r"messages\[1\] is a tool's"),
        ([USER, asking(call()), result("5", "b")], r"messages\[2\].tool_call_id must be that of"),
        ([USER, asking(call()), {**result("5"), "tool_call_id": 5}], r"messages\[2\].tool_call_id"),
        ([USER, asking(call()), {"role": "tool"}], r"messages\[2\].content must be a text"),
        ([USER, {**USER, "tool_calls": [call()]}], r"messages\[1\].tool_calls cannot be honoured"),
        ([USER, {**USER, "tool_call_id": "a"}], r"messages\[1\].tool_call_id cannot be honoured"),
        ([USER, {"role": "assistant", "content": None}, USER], r"messages\[1\].content must be"),
        ([USER, asking(1), USER], r"messages\[1\].tool_calls\[0\] must be the call of a function"),
        ([USER, asking(call(type="web"))], r"messages\[1\].tool_calls\[0\].type must be function"),
        ([USER, asking(call(more=1))], r"messages\[1\].tool_calls\[0\].more cannot be honoured"),
        ([USER, asking(call(5))], r"messages\[1\].tool_calls\[0\].id must be a text"),  # type: ignore[arg-type]
        ([USER, asking(call(arguments="[]"))], r"arguments must be the text of a JSON object"),
        ([USER, asking(call(arguments="{"))], "arguments must be the text"),
        ([USER, asking(call(arguments='{"a": NaN}'))], "arguments must be the text"),
        ([USER, asking(call(arguments="[" * 10**5))], "arguments must be the text"),
        ([USER, asking(call(arguments='{"a": "\\ud83d"}'))], "arguments.a holds half a surrogate"),
    ],
)
def test_what_is_no_call_or_result_is_refused_by_name(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        as_messages(messages)


def test_a_call_is_not_continued_and_a_prefix_is() -> None:
    begun = [USER, {"role": "assistant", "content": "It", "prefix": True}]
    Settings().check(begun)
    with pytest.raises(PromptError, match=r"messages\[1\].tool_calls cannot be continued"):
        Settings(continue_final_message=True).check([USER, asking(call())])
    with pytest.raises(PromptError, match="ends in an assistant's message"):
        Settings().check([USER, asking(call())])
    Settings().check([USER, asking(call()), result("")])


def test_a_conversation_is_checked_wherever_it_is_given() -> None:
    with pytest.raises(PromptError, match=r"tools\[0\] must be a function"):
        Settings().check(Conversation(messages=[USER], tools=[{}]))
    with pytest.raises(PromptError, match="template_arguments must be values by their names"):
        Settings().check(Conversation(messages=[USER], template_arguments={1: 2}))  # type: ignore[dict-item]
    with pytest.raises(PromptError, match="the prompt is empty"):
        as_conversation(Conversation(messages=[]))
    asked = Conversation(messages=[USER], template_arguments={"a": 1})
    assert as_conversation(asked) == asked == as_conversation(as_conversation(asked))
    assert [*asked] == [USER]


def test_a_conversation_in_texts_holds_all_that_was_said() -> None:
    given = [USER, asking(call("a"), call("b"), content="I look."), result("5"), result("6", "b")]
    assert as_texts(as_messages(given)) == [
        USER,
        {
            "role": "assistant",
            "content": 'I look.\n{"name": "f", "arguments": {}}\n{"name": "f", "arguments": {}}',
        },
        {"role": "user", "content": "5\n6"},
    ]
    assert uses_tools(given)
    assert not uses_tools([USER])


def test_a_prompts_bytes_are_those_of_contents_calls_and_tools() -> None:
    assert prompt_bytes("é") == 2
    given = [USER, asking(call(arguments='{"a": 1}')), result("56")]
    assert prompt_bytes(given) == len("Why?") + len('f{"a": 1}') + len("56")
    parameters = {"type": "object", "properties": {"é": {"enum": list(range(1000))}}}
    function = {"name": "g", "description": "xyz", "parameters": parameters}
    tool = {"type": "function", "function": function}
    counted = prompt_bytes(Conversation(messages=[USER], tools=[tool]))
    written = json.dumps(parameters, ensure_ascii=False).replace(" ", "")
    assert counted == len("Why?") + len("gxyz") + len(written.encode())
