"""Engines that break the rules: what they do is an EngineError, the same wherever it is met."""

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej.api import prepare, unobserved
from specrej.attention.layout import Demand
from specrej.engines.base import Token
from specrej.errors import EngineError
from specrej.search.pool import Pool
from specrej.search.scheduler import Outcome, run
from specrej.settings import Settings
from specrej.types import Prompt, Result

PROMPTS = ["Why?", "How so, and since when?", "é", "Who?", "Where to?", "What for?", "Why not?"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "min_tokens": 5, "n": 16, "memory": 4000}
OVERFLOW = OverflowError("int too large")


def outcomes_of(engine: FakeEngine, reward: FakeReward) -> dict[int, Outcome]:
    """Of all prompts, three at a time."""
    each = Settings(**OPTIONS)
    makers = (partial(prepare, engine, reward, prompt, each) for prompt in PROMPTS)
    return dict(run(engine, makers, pool=Pool(10**9), in_flight=3, observe=unobserved))


class Faulty(FakeEngine):
    """Once, in its sixth step or when a prompt is closed, it does what no engine may."""

    def __init__(self, fault: str) -> None:
        super().__init__(eos=0.02)
        self.fault: str | None = fault

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        tokens = super().step(limits)
        if self.num_steps < 6 or self.fault not in ("raises", "prompt", "nothing"):
            return tokens
        fault, self.fault = self.fault, None
        if fault == "raises":
            raise RuntimeError("CUDA error")
        return [*tokens, Token(99, 0, 97, None, None)] if fault == "prompt" else None  # type: ignore[return-value]

    def demand(self, prompt: int) -> Demand:
        if self.num_steps == 6 and self.fault == "demand":
            self.fault = None
            raise RuntimeError("CUDA error")
        return super().demand(prompt)

    def close(self, prompt: int) -> None:
        super().close(prompt)
        if self.fault == "close":
            self.fault = None
            raise RuntimeError("CUDA error")


FAULTS = {
    "raises": "the engine failed: RuntimeError('CUDA error')",
    "demand": "the engine failed: RuntimeError('CUDA error')",
    "close": "the engine failed: RuntimeError('CUDA error')",
    "prompt": "the engine failed: it gave a token of prompt 99, and was asked for [0, 1, 2]",
    "nothing": "the engine failed: TypeError(",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_fails_ends_those_in_flight_and_the_next_ones_run(fault: str) -> None:
    engine, reward = Faulty(fault), FakeReward()
    outcomes = outcomes_of(engine, reward)
    failed = [number for number, one in outcomes.items() if not isinstance(one, Result)]
    assert len(failed) == 3
    for number, outcome in outcomes.items():
        if isinstance(outcome, Result):
            alone = specrej.generate(
                PROMPTS[number], model=FakeEngine(eos=0.02), reward=FakeReward(), **OPTIONS
            )
            assert (outcome.candidates, outcome.decisions) == (alone.candidates, alone.decisions)
        else:
            assert isinstance(outcome, EngineError)
            assert str(outcome).startswith(FAULTS[fault])
            is_quoted = fault in ("raises", "demand", "close")
            assert isinstance(outcome.__cause__, RuntimeError) == is_quoted
    assert len(outcomes) == len(PROMPTS)
    assert not engine.groups
    assert all(session.is_closed for session in reward.sessions)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_fails_says_so_to_every_caller(fault: str) -> None:
    said = re.escape(FAULTS[fault].replace(", 1, 2", ""))
    with pytest.raises(EngineError, match=said):
        specrej.generate("Why?", engine=Faulty(fault), reward=FakeReward(), **OPTIONS)

    async def ask() -> None:
        async with specrej.Session(engine=Faulty(fault), reward=FakeReward(), **OPTIONS) as opened:
            with pytest.raises(EngineError, match=said):
                await opened.agenerate("Why?")
            assert isinstance(await opened.agenerate("Why?"), Result)

    asyncio.run(ask())


@pytest.mark.parametrize("stray", [-1, 6, "rejected", "complete"])
def test_a_token_of_nobody_fails_its_prompt(stray: Any) -> None:
    class Stray(FakeEngine):
        def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
            tokens = super().step(limits)
            left = self.groups[0].token_ids.keys() - {token.candidate for token in tokens}
            which = next(iter(left), None) if isinstance(stray, str) else stray
            more = [] if which is None else [Token(0, which, 97, None, None)]
            return [*tokens, *more]

    options = {**OPTIONS, "n": 6, "alpha": 0.5 if stray == "rejected" else 0.0}
    engine = Stray(eos=0.3 if stray == "complete" else 0.0)
    said = "6 were added" if stray in (-1, 6) else f"is not decoded any more: it is {stray}"
    with pytest.raises(EngineError, match=f"it gave a token of candidate .*{said}"):
        specrej.generate("Why?", engine=engine, reward=FakeReward(), **options, decide="every:5")
    assert not engine.groups


def test_a_prompt_that_cannot_be_read_fails_alike_alone() -> None:
    class Illiterate(FakeEngine):
        def encode(self, prompt: Prompt) -> list[int]:
            raise OVERFLOW

    with pytest.raises(EngineError, match="the engine failed: OverflowError") as caught:
        specrej.generate("Why?", engine=Illiterate(), reward=FakeReward(), **OPTIONS)
    assert caught.value.__cause__ is OVERFLOW
