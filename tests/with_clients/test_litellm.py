"""LiteLLM's functions, as the gateways and agents that stand on it call them."""

from typing import Any

import litellm
import pytest

from with_clients.pet import ASK, Pet

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def there(url: str) -> dict[str, Any]:
    return {"model": "openai/tiny", "api_base": url, "api_key": "none", "num_retries": 0}


def test_completion(there: Any) -> None:
    answer = litellm.completion(messages=HELLO, **there)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_vllms_provider(there: Any) -> None:
    answer = litellm.completion(messages=HELLO, **there | {"model": "hosted_vllm/tiny"})
    assert answer.choices[0].message.content


def test_stream(there: Any) -> None:
    chunks = litellm.completion(messages=HELLO, stream=True, **there)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_structure(there: Any) -> None:
    messages = [{"role": "user", "content": ASK}]
    answer = litellm.completion(messages=messages, response_format=Pet, **there)
    assert Pet.model_validate_json(answer.choices[0].message.content)


def test_text_completion(there: Any) -> None:
    there = there | {"model": "text-completion-openai/tiny"}
    assert litellm.text_completion(prompt="Hello", **there).choices[0].text
    assert len(litellm.text_completion(prompt=["Hello", "Well,"], **there).choices) == 2
