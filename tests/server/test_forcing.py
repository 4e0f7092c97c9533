"""A `tool_choice` that has a function called."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from specrej.errors import PromptError, UsageError
from specrej.server.forcing import FORM, forced, schema_of_calls
from specrej.server.protocol import parse_chat
from specrej.settings import Settings

KIND = {"enum": ["cat", "dog"], "type": "string"}
PET = {
    "name": "Pet",
    "parameters": {
        "$defs": {"Kind": KIND},
        "type": "object",
        "properties": {"kind": {"$ref": "#/$defs/Kind"}},
        "required": ["kind"],
        "additionalProperties": False,
    },
}
TREE = {
    "name": "grow",
    "parameters": {
        "type": "object",
        "properties": {"leaves": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["leaves"],
        "additionalProperties": False,
    },
}


def tools(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function} for function in functions]


BOTH = tools(PET, TREE)


def body(choice: Any, given: Any = BOTH, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Which?"}]
    return {"model": "m", "messages": messages, "tools": given, "tool_choice": choice, **fields}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def obeys(schema: dict[str, Any], text: str) -> bool:
    matcher = LLMatcher(
        LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0
    )
    read = matcher.try_consume_tokens([*text.encode()])
    return bool(read == len(text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, []),
        ("auto", []),
        ("none", []),
        ("required", ["Pet", "grow"]),
        (named("grow"), ["grow"]),
    ],
)
def test_a_choice_says_which_functions_may_be_called(choice: Any, names: list[str]) -> None:
    assert [tool["function"]["name"] for tool in forced(body(choice))] == names
    asked = parse_chat(body(choice), Settings())
    assert asked.must_call == bool(names)
    assert (asked.settings.constraint is not None) == bool(names)


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        ('{"name": "Pet", "arguments": {"kind": "cat"}}', True),
        ('{"name": "Pet", "arguments": {"kind": "cow"}}', False),
        ('{"name": "grow", "arguments": {"leaves": [{"leaves": []}]}}', True),
        ('{"name": "grow", "arguments": {"leaves": [{"kind": "cat"}]}}', False),
        ('{"name": "grow", "arguments": {"kind": "cat"}}', False),
        ('{"name": "Cow", "arguments": {}}', False),
    ],
)
def test_calls_obey_the_parameters_wherever_these_refer_to(text: str, is_call: bool) -> None:
    chosen = forced(body("required"))
    assert obeys(schema_of_calls(chosen), text) == is_call
    if is_call:
        found = FORM.parse(text, {"Pet", "grow"})
        assert found is not None
        [call] = found.calls
        assert json.loads(text) == {"name": call.name, "arguments": json.loads(call.arguments)}


def test_strict_asks_for_nothing_more_where_calls_obey_anyway() -> None:
    strict = tools(PET | {"strict": True})
    for choice in ("required", named("Pet"), "none"):
        assert parse_chat(body(choice, strict), Settings()) == parse_chat(
            body(choice, tools(PET)), Settings()
        )
    with pytest.raises(PromptError, match=r"tools\[0\].function.strict cannot be honoured"):
        parse_chat(body("auto", strict), Settings())


@pytest.mark.parametrize(
    "choice",
    ["any", 1, {"type": "function"}, named("Pet") | {"more": 1}, {"type": "allowed_tools"}],
)
def test_what_is_no_choice_is_refused(choice: Any) -> None:
    with pytest.raises(UsageError, match=r"^tool_choice cannot be honoured, got"):
        parse_chat(body(choice), Settings())


@pytest.mark.parametrize(("choice", "given"), [(named("Cow"), tools(PET)), ("required", [])])
def test_a_function_that_is_not_given_cannot_be_called(choice: Any, given: Any) -> None:
    with pytest.raises(UsageError, match=r"^tool_choice must be among the tools"):
        parse_chat(body(choice, given), Settings())


@pytest.mark.parametrize(
    "other", [{"response_format": {"type": "json_object"}}, {"specrej": {"regex": "a*"}}]
)
def test_answers_obey_one_thing(other: Any) -> None:
    with pytest.raises(UsageError, match=r"^tool_choice must be left out beside"):
        parse_chat(body("required", **other), Settings())


@pytest.mark.parametrize("parameters", [{"properties": {}}, {"type": ["object", "null"]}])
def test_arguments_are_an_object_where_parameters_leave_it_open(parameters: Any) -> None:
    schema = schema_of_calls(forced(body("required", tools({**PET, "parameters": parameters}))))
    assert obeys(schema, '{"name": "Pet", "arguments": {}}')
    assert not obeys(schema, '{"name": "Pet", "arguments": null}')
    assert not obeys(schema, '{"name": "Pet", "arguments": false}')


def test_parameters_that_no_object_obeys_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^tools must have parameters of the type object, got"):
        parse_chat(body("required", tools({**PET, "parameters": {"type": "array"}})), Settings())


def test_parameters_that_are_nested_too_deeply_are_refused() -> None:
    deep: Any = {}
    for _ in range(900):
        deep = [deep]
    with pytest.raises(UsageError, match=r"^(tools|json_schema) must"):
        parse_chat(body("required", tools({**PET, "parameters": {"a": deep}})), Settings())
