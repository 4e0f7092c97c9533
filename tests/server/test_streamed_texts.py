"""On a model with random weights, which writes any bytes: what is streamed is the answer, whatever
its tokenizer.
"""

import asyncio
import json
from typing import Any

import pytest
from live import serving

import specrej
from fakes import FakeReward
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.settings import Settings
from specrej.types import Continuation
from tiny import CHAT_TEMPLATE, EOS_ID, make_model
from vocabularies import KINDS

SETTINGS = Settings(
    n=4, max_new_tokens=40, min_tokens=4, memory=10**6, decide="every:8", alpha=0.7, top_k=0
)


def engine_of(kind: str) -> TorchEngine:
    tokenizer = KINDS[kind](CHAT_TEMPLATE)
    model = make_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [EOS_ID]
    return wrap(model, tokenizer, weights="fp32")


def pieces_of(stream: str) -> list[str]:
    data = [
        line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")
    ]
    assert data.pop() == "[DONE]"
    choices = [choice for one in data for choice in json.loads(one)["choices"]]
    return [
        choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        for choice in choices
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_streamed_is_the_answer(kind: str) -> None:
    asyncio.run(_ask(engine_of(kind)))


async def _ask(engine: TorchEngine) -> None:
    num_pieces = 0
    async with serving(engine, defaults=SETTINGS, total_bytes=10**7) as served:
        for seed in range(8):
            body: dict[str, Any] = {"seed": seed, "stop": [["é", "<user>"], None][seed % 2]}
            chat = {**body, "messages": [{"role": "user", "content": "Why?"}]}
            for path, asked in (
                ("completions", {**body, "prompt": "Why?"}),
                ("chat/completions", chat),
            ):
                pieces = pieces_of(
                    (await served.ask({**asked, "stream": True}, f"/v1/{path}")).text
                )
                num_pieces += len(pieces)
                prompt: Any = Continuation("Why?") if path == "completions" else chat["messages"]
                options = {**SETTINGS.to_dict(), "seed": seed, "stop": body["stop"] or ()}
                result = specrej.generate(prompt, model=engine, reward=FakeReward(), **options)
                assert "".join(pieces) == result.text
                if path == "chat/completions":
                    told = (await served.ask({**asked, "logprobs": True}, f"/v1/{path}")).json()[
                        "choices"
                    ][0]
                    assert (
                        "".join(one["token"] for one in told["logprobs"]["content"]) == result.text
                    )
    assert num_pieces > 60
