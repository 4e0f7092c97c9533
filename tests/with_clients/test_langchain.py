"""LangChain's ChatOpenAI and OpenAI, as its agents and chains use them."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

from with_clients.pet import ASK, Pet


@pytest.fixture(scope="module")
def chat(url: str) -> Any:
    return ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0)


def test_invoke(chat: Any) -> None:
    answer = chat.invoke("Hello")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: Any) -> None:
    assert "".join(piece.content for piece in chat.stream("Hello"))


def test_batch(chat: Any) -> None:
    assert all(answer.content for answer in chat.batch(["Hello", "Well,", "So"]))


def test_temperature_0_of_an_agent(url: str) -> None:
    chat = ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0, temperature=0)
    first, again = (chat.invoke([("system", "Be brief."), ("human", "Hi")]) for _ in range(2))
    assert first.content == again.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    """The first is the default."""
    assert isinstance(chat.with_structured_output(Pet, method=method).invoke(ASK), Pet)


def test_bound_tools(chat: Any) -> None:
    answer = chat.bind_tools([Pet]).invoke(ASK)
    assert answer.content or answer.tool_calls
    [call] = chat.bind_tools([Pet], tool_choice="Pet").invoke(ASK).tool_calls
    assert Pet.model_validate(call["args"])


def test_the_turns_of_a_tool(chat: Any) -> None:
    call = {"name": "Pet", "args": {"kind": "cat", "is_tame": True}, "id": "1"}
    turns = [
        HumanMessage(ASK, name="Ann"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("a tame cat", tool_call_id="1"),
    ]
    assert chat.bind_tools([Pet], tool_choice="none").invoke(turns).content


def test_responses(url: str) -> None:
    chat = ChatOpenAI(
        model="tiny", base_url=url, api_key="none", max_retries=0, use_responses_api=True
    )
    assert chat.invoke("Hello").text


def test_texts(url: str) -> None:
    """It sends all its prompts in one list, zero penalties and a limit of 256 tokens."""
    texts = OpenAI(model="tiny", base_url=url, api_key="none", max_retries=0)
    assert texts.invoke("Hello")
    assert all(texts.batch(["Hello", "Well,"]))
