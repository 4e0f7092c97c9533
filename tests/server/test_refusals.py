"""Refusals say what is at fault, and no more than that."""

import pytest

from specrej.errors import BudgetError, PromptError, SamplingError, UsageError
from specrej.server.protocol import parse_text
from specrej.server.refusals import refusal_of, refusal_of_body
from specrej.settings import Settings


@pytest.mark.parametrize(("name", "param"), [("colour", "colour"), ("x" * 900_000, None)])
def test_a_field_nobody_knows_is_named_if_it_is_a_name(name: str, param: str | None) -> None:
    body = {"model": "bytes", "prompt": "a", name: 1}
    with pytest.raises(UsageError) as caught:
        parse_text(body, Settings())
    refusal = refusal_of_body(caught.value, body)
    assert refusal.param == param
    assert len(refusal.message) < 1000


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"text": None}, "text.format"),
        ({"response_format": None}, "response_format"),
        ({"tools": None, "tool_choice": None}, "tools"),
        ({"specrej": {"json_schema": {}}}, "specrej.json_schema"),
        ({}, None),  # in a stream nothing of the body is there any more
    ],
)
def test_a_schema_that_cannot_be_followed_is_named_where_it_was_given(
    given: dict[str, object], param: str | None
) -> None:
    error = SamplingError("json_schema must be one that can be followed")
    assert refusal_of(error, given).param == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"input": None, "max_output_tokens": None}, "max_output_tokens"),
        ({"messages": None, "specrej": {"memory": "1KiB"}}, "specrej.memory"),
        ({}, None),
    ],
)
def test_what_is_too_large_for_its_memory_names_what_makes_it_so(
    given: dict[str, object], param: str | None
) -> None:
    error = BudgetError("a budget of 1.00 KiB does not hold one candidate", hint="give more")
    assert refusal_of(error, given).param == param


def test_an_effort_that_the_template_does_not_know_is_named_as_the_body_does() -> None:
    error = PromptError("reasoning_effort cannot be honoured: the template does not name it")
    assert refusal_of(error, {"input": None, "reasoning": None}).param == "reasoning.effort"
