"""Instructor, in its default mode and in those that use no tools."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import instructor
import openai
import pytest
from instructor.core import InstructorError

from with_clients.pet import ASK, Pet

MESSAGES: Any = [{"role": "user", "content": ASK}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_its_default_mode_calls_a_tool(client: openai.OpenAI) -> None:
    asking = instructor.from_openai(client)
    assert asking.mode is instructor.Mode.TOOLS
    pet = asking.create(model="tiny", response_model=Pet, messages=MESSAGES, max_retries=1)
    assert isinstance(pet, Pet)


def test_a_schema(client: openai.OpenAI) -> None:
    asking = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    pet = asking.create(model="tiny", response_model=Pet, messages=MESSAGES, max_retries=1)
    assert isinstance(pet, Pet)


def test_any_json(client: openai.OpenAI) -> None:
    """Of a random model it is some object, hardly ever a pet; what instructor makes of that is its
    own affair."""
    asking = instructor.from_openai(client, mode=instructor.Mode.JSON)
    answers: list[Any] = []
    asking.on("completion:response", answers.append)
    with suppress(InstructorError):
        asking.create(model="tiny", response_model=Pet, messages=MESSAGES, max_retries=1)
    assert answers[0].choices[0].message.content.startswith("{")
