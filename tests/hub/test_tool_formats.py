"""Calls as models write them: what a chat template writes for a call is read back as that call."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from specrej.hub.contents import ChatTokenizer
from specrej.hub.tokenizers import TextCodec
from specrej.hub.tool_formats import FORMS, Call, Calls, ToolForm, form_of
from specrej.server.calling import CertainText
from specrej.types import Conversation
from templates import FORMATS, ChatFormat
from tool_templates import TOOL_FORMATS, xml

USER = {"role": "user", "content": "What is the weather?"}
HOSTILE = ["</tool_call>", "<tool_call>", "<|im_end|>", "[TOOL_CALLS]", "<|eot_id|>", '"}}', "é\\"]
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cn"]), max_size=9) | (
    st.sampled_from(HOSTILE)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
calls = st.tuples(
    st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
    st.dictionaries(texts, values, max_size=3),
)


@cache
def made(name: str) -> ChatFormat:
    return TOOL_FORMATS[name]()


@cache
def codec_of(name: str) -> TextCodec:
    return TextCodec(made(name).tokenizer)


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}


def turn(given: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": f"{number:09d}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(given)
        ],
    }


def parsed(found: Calls | None) -> list[tuple[str, Any]]:
    assert found is not None
    return [(call.name, json.loads(call.arguments)) for call in found.calls]


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_family_is_known_by_its_chat_template(name: str) -> None:
    form = form_of(made(name).tokenizer)
    family = "hermes" if name in ("thinking", "hermes_special") else name
    assert form is not None
    assert form.name == family


@pytest.mark.parametrize("make", [*FORMATS.values(), xml])
def test_a_template_that_writes_no_call_or_another_form_is_of_no_family(make: Any) -> None:
    assert form_of(make().tokenizer) is None


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS.keys() - {"thinking"}))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_calls_that_a_template_writes_are_read_back_from_their_tokens(
    name: str, data: st.DataObject
) -> None:
    most = 1 if name == "llama3" else 3
    given_calls = data.draw(st.lists(calls, min_size=1, max_size=most))
    codec, chat = codec_of(name), ChatTokenizer(made(name).tokenizer)
    before = chat.write([USER], add_generation_prompt=True)
    whole = chat.write([USER, turn(given_calls)])
    assert whole.startswith(before)
    ids = chat.ids(whole.removeprefix(before))
    prompt = Conversation(messages=[USER], tools=[tool("f")])
    reader, form = codec.detokenizer(prompt), codec.tool_form
    assert form is not None
    assert reader.tool_form == form
    text = "".join(reader.add(one).text for one in ids)
    spelled = form.spelled(text, ids, codec.detokenizer(prompt))
    assert parsed(form.parse(spelled, {call for call, _ in given_calls})) == given_calls
    assert codec.detokenizer([USER]).tool_form is None


def written(form: ToolForm, given: list[tuple[str, Any]]) -> str:
    """Calls in a family's form, by hand."""
    if form.name == "hermes":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>"
            for n, a in given
        )
    if form.name == "mistral":
        return "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in given])
    return "; ".join(json.dumps({"name": n, "parameters": a}) for n, a in given)


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(calls, min_size=1, max_size=3))
def test_calls_written_by_hand_are_read_back(form: ToolForm, given: list[tuple[str, Any]]) -> None:
    offered = {name for name, _ in given}
    assert parsed(form.parse(written(form, given), offered)) == given
    assert form.parse(written(form, given), offered - {given[-1][0]}) is None


def test_texts_around_calls_stay() -> None:
    form, call = FORMS["hermes"], '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert form.parse(f"I look.\n\n{call}\n{call} Done.", {"f"}) == Calls(
        "I look.\nDone.", [Call("f", "{}")] * 2
    )
    python = '<|python_tag|>{"name": "f", "parameters": {}}'
    assert FORMS["llama3"].parse(python, {"f"}) == Calls("", [Call("f", "{}")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>"),
        ("hermes", "<tool_call>" + '{"name": "f", "arguments": ' + "[" * 10**5),
        ("hermes", '<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        ("hermes", '{"name": "f", "arguments": {}}'),
        ("llama3", "Well."),
        ("llama3", ""),
        ("llama3", "5"),
        ("llama3", '{"city": "Paris"}'),
        ("llama3", 'So: {"name": "f", "parameters": {}}'),
        ("llama3", '{"name": "f", "parameters": {}} So.'),
        ("mistral", '[{"name": "f", "arguments": {}}]'),
        ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {}}'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}'),
        ("mistral", "[TOOL_CALLS][]"),
        ("mistral", 'So [TOOL_CALLS][{"name": "f", "arguments": {}}]'),
    ],
)
def test_what_is_no_call_of_an_offered_function_is_text(name: str, text: str) -> None:
    assert FORMS[name].parse(text, {"f"}) is None


PARTS = [
    " ", "\n", "So ", "<", "<tool_call>", "</tool_call>", "[", "{", "}", "[TOOL_CALLS]", "]",
    '{"name": "f", "arguments": {}}', '[{"name": "f", "arguments": {}}]',
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PARTS), max_size=7))
def test_what_was_streamed_is_how_the_content_begins(form: ToolForm, parts: list[str]) -> None:
    """Whatever comes behind it; and what can begin no call does not wait."""
    whole = "".join(parts)
    found = form.parse(whole, {"f"})
    text = CertainText(form)
    joined = "".join(text.add(character) for character in whole)
    assert joined == text.sent
    assert (whole if found is None else found.text).startswith(joined)
    if not any(mark in whole for mark in "<[{"):
        assert joined.rstrip() == whole.rstrip()


def test_behind_a_tag_that_is_a_special_token_the_call_is_held_back() -> None:
    form = codec_of("hermes_special").tool_form
    assert form is not None
    assert form.certain('I look. {"na') == "I look."
    assert FORMS["hermes"].certain("I look. {a} <tool") == "I look. {a}"
