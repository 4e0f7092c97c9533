"""The official client, of the version before the one that tests/server asks with."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import openai
import pytest
from openai.types import chat, completion_create_params

from with_clients.pet import ASK, Pet

DOCUMENT = Path(__file__).parents[2] / "docs" / "server.md"
HELLO: Any = [{"role": "user", "content": "Hello"}]
STRICT: Any = openai.pydantic_function_tool(Pet)
TOOL: Any = {
    "type": "function",
    "function": {"name": "Pet", "parameters": Pet.model_json_schema()},
}
FORCED: Any = {"type": "function", "function": {"name": "Pet"}}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def create(client: openai.OpenAI) -> Any:
    """A chat's create, with a model and a question."""
    return lambda **fields: client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, **fields}
    )


def test_a_chat_at_the_clients_defaults(create: Any) -> None:
    answer = create()
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens > 0
    assert answer.specrej["num_candidates"] == 4


def test_a_stream_is_the_answer_in_pieces(create: Any) -> None:
    whole = create(seed=1).choices[0].message.content
    chunks = list(create(seed=1, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole
    assert chunks[-1].usage.total_tokens > 0


def test_a_seed_repeats_and_another_does_not(create: Any) -> None:
    first, again, other = (create(seed=seed).choices[0].message.content for seed in (5, 5, 6))
    assert first == again != other


def test_several_answers_come_best_first(create: Any) -> None:
    answer = create(n=3, seed=2)
    rewards = answer.specrej["rewards"]
    assert 1 <= len(answer.choices) == answer.specrej["num_answers"] <= 3
    assert rewards == sorted(rewards, reverse=True)


def test_a_stop_string_ends_the_answer(create: Any) -> None:
    text = create(seed=3).choices[0].message.content
    stop = text[len(text) // 2]
    stopped = create(seed=3, stop=stop, extra_body={"specrej": {"n": 1}}).choices[0]
    assert stop not in stopped.message.content
    assert stopped.finish_reason in ("stop", "length")


def test_log_probabilities_come_with_the_likeliest_tokens(create: Any) -> None:
    [choice] = create(seed=4, logprobs=True, top_logprobs=3).choices
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        likeliest = [one.logprob for one in token.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert token.logprob <= likeliest[0] <= 0


def test_temperature_0_is_the_likeliest_answer(create: Any) -> None:
    first, again = (create(temperature=0).choices[0].message.content for _ in range(2))
    assert first == again


def test_penalties_and_biases_are_honoured(create: Any) -> None:
    letter_a = 5 + sorted(_byte_alphabet()).index("a")
    answer = create(logit_bias={letter_a: 100}, max_tokens=8).choices[0].message.content
    assert answer == "a" * 8
    penalised = create(logit_bias={letter_a: 12}, frequency_penalty=2.0, max_tokens=64, seed=1)
    assert set(penalised.choices[0].message.content) != {"a"}


def _byte_alphabet() -> list[str]:
    """GPT-2's letters for bytes, in which the tokens of the tiny model are sorted."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printed] + [chr(256 + number) for number in range(68)]


def test_a_structure_is_parsed(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": ASK}]
    answer = client.chat.completions.parse(model="tiny", messages=messages, response_format=Pet)
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_a_structure_is_parsed_from_a_stream(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": ASK}]
    with client.chat.completions.stream(
        model="tiny", messages=messages, response_format=Pet
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)


def test_an_object_is_json(create: Any) -> None:
    answer = create(response_format={"type": "json_object"}, seed=1).choices[0]
    assert answer.message.content.lstrip().startswith("{")


def test_tools_may_be_called_or_not(create: Any) -> None:
    message = create(tools=[TOOL]).choices[0].message
    assert message.content or message.tool_calls
    assert create(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None


def test_a_tool_that_must_be_called_is(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": ASK}]
    answer = client.chat.completions.parse(
        model="tiny", messages=messages, tools=[STRICT], tool_choice=FORCED
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.function.name == "Pet"
    assert isinstance(call.function.parsed_arguments, Pet)


@pytest.mark.parametrize("choice", [FORCED, "required"])
def test_a_call_is_streamed(create: Any, choice: Any) -> None:
    chunks = list(create(tools=[TOOL], tool_choice=choice, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function.name] == ["Pet"]
    assert Pet.model_validate_json("".join(call.function.arguments or "" for call in calls))
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_a_turn_is_replayed_as_the_client_has_it(create: Any) -> None:
    """An application appends the message that it got, with all its fields."""
    said = create().choices[0].message
    calls = [{"id": "1", "type": "function", "function": {"name": "Pet", "arguments": "{}"}}]
    history = [
        *HELLO,
        said,
        {"role": "user", "content": ASK, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
    ]
    assert create(messages=history, tools=[TOOL]).choices


def test_a_list_of_prompts_is_answered_in_its_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["Hello", "Well,"], seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for prompt, choice in zip(["Hello", "Well,"], answer.choices, strict=True):
        alone = client.completions.create(model="tiny", prompt=prompt, seed=1)
        assert choice.text
        assert alone.choices[0].text


def test_a_text_comes_with_log_probabilities(client: openai.OpenAI) -> None:
    [choice] = client.completions.create(
        model="tiny", prompt="Hello", seed=1, logprobs=2, echo=True
    ).choices
    said = choice.logprobs
    assert said is not None
    assert choice.text.startswith("Hello")
    assert "".join(said.tokens or []) == choice.text
    assert (said.token_logprobs or [])[0] is None
    assert (said.text_offset or [])[:5] == [0, 1, 2, 3, 4]


def test_a_response_is_created(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="Hello")
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_a_response_is_streamed(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input="Hello", stream=True))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert "".join(pieces) == last.response.output_text


def test_a_response_is_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="tiny", input=ASK, text_format=Pet)
    assert isinstance(response.output_parsed, Pet)


def test_the_documents_table_has_every_field_that_the_client_knows() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    for fields in (
        chat.completion_create_params.CompletionCreateParamsStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ):
        assert get_type_hints(fields).keys() - rows == set()


def test_an_error_is_the_clients_own(create: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="modalities"):
        create(modalities=["audio"])
    with pytest.raises(openai.NotFoundError):
        create(model="other")
    assert [model.id for model in client.models.list()] == ["tiny"]
