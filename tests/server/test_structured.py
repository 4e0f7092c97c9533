"""Structured and free requests side by side on a real engine, as openai's client and others ask."""

import asyncio
import json
from typing import Any

import httpx
import jsonschema
from live import connect, serving
from test_streamed_texts import pieces_of

from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.rewards import as_reward
from specrej.settings import Settings
from tiny import CHAT_TEMPLATE, EOS_ID, make_model, make_tokenizer

SETTINGS = Settings(n=4, max_new_tokens=110, min_tokens=4, memory=10**6, decide="every:8")
SCHEMA: dict[str, Any] = {
    "$defs": {"colour": {"enum": ["red", "green"]}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "colours": {"type": "array", "items": {"$ref": "#/$defs/colour"}, "maxItems": 2},
        "size": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
    },
    "required": ["name", "colours", "size"],
    "additionalProperties": False,
}
CHAT = "/v1/chat/completions"


def engine_of() -> TorchEngine:
    model = make_model("llama")
    model.generation_config.eos_token_id = [EOS_ID]
    return wrap(model, make_tokenizer(CHAT_TEMPLATE), weights="fp32")


def body_of(seed: int, *, is_bound: bool, **more: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    own = {"response_format": wanted} if is_bound else {}
    return {"messages": [{"role": "user", "content": "Why?"}], "seed": seed, **own, **more}


def test_structured_and_free_requests_side_by_side_leave_nothing() -> None:
    """Some streamed, some of clients that go; what is left is what each gets alone."""

    async def check() -> None:
        engine = engine_of()
        async with serving(engine, defaults=SETTINGS, total_bytes=10**7) as served:
            bodies = [body_of(seed, is_bound=seed % 2 == 0) for seed in range(12)]
            alone = [content_of(await served.ask(body, CHAT)) for body in bodies]
            gone = [
                await connect(
                    served, CHAT, body_of(seed, is_bound=seed % 2 == 1, stream=seed % 3 == 0)
                )
                for seed in range(6)
            ]
            streamed = [{**body, "stream": n % 3 == 0} for n, body in enumerate(bodies)]
            together = asyncio.gather(*(served.ask(body, CHAT) for body in streamed))
            await asyncio.sleep(0.05)
            for connection in gone:
                connection.reset()
            for number, response in enumerate(await together):
                text = (
                    "".join(pieces_of(response.text)) if number % 3 == 0 else content_of(response)
                )
                assert text == alone[number]
                if number % 2 == 0:
                    jsonschema.validate(json.loads(text), SCHEMA)
        assert not engine._runs

    asyncio.run(check())


def content_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def test_partial_rewards_read_partial_json() -> None:
    seen: list[str] = []

    def rate(_: str, texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    async def check() -> None:
        given: dict[str, Any] = {"defaults": SETTINGS, "total_bytes": 10**7}
        async with serving(engine_of(), as_reward(rate), **given) as served:
            content_of(await served.ask(body_of(1, is_bound=True), CHAT))

    asyncio.run(check())
    partial = [text for text in seen if not text.endswith("}")]
    assert partial
    assert all(text.startswith('{"name": "'[: len(text)]) for text in seen)
