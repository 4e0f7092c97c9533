"""One prompt's numbers never touch another's: extreme settings, NaN and infinity in a real model,
beside a neighbour.

The neighbour's tokens must be those that it gets alone, and nothing may be raised that ends it.
"""

import math
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from extremes import EXTREME
from fakes import FakeReward
from specrej.engines.base import Token
from specrej.engines.torch.engine import TorchEngine
from specrej.errors import EngineError, PromptError
from specrej.types import Result, SamplingParams
from tiny import (
    EOS_ID,
    VOCABULARY,
    decode,
    full_logits,
    make_engine,
    make_ids,
    make_model,
    reference,
)

LENGTH = 12
NEIGHBOUR = SamplingParams(max_new_tokens=LENGTH, seed=5, ignore_eos=True)
BUDGET = 2**24


def answers_of(
    engine: TorchEngine, *asked: tuple[list[int], SamplingParams, int]
) -> list[dict[int, list[Token]]]:
    """The tokens of prompts that are decoded side by side, by candidate; each with its number of
    candidates."""
    handles = []
    for ids, sampling, n in asked:
        handles.append(engine.open(ids, sampling, BUDGET))
        engine.add(handles[-1], range(n))
    answers = decode(engine)
    for handle in handles:
        engine.close(handle)
    return [
        {index: tokens for (prompt, index), tokens in answers.items() if prompt == handle}
        for handle in handles
    ]


def ids_of(answers: dict[int, list[Token]]) -> dict[int, list[int]]:
    return {index: [token.token_id for token in tokens] for index, tokens in answers.items()}


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return make_engine(make_model("llama"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(params=EXTREME, n=st.integers(1, 3))
def test_beside_extreme_settings_a_prompt_has_the_tokens_it_has_alone(
    engine: TorchEngine, params: SamplingParams, n: int
) -> None:
    ordinary = (make_ids(20), NEIGHBOUR, 3)
    extreme = (make_ids(9, seed=1), replace(params, max_new_tokens=LENGTH), n)
    [alone] = answers_of(engine, ordinary)
    beside, others = answers_of(engine, ordinary, extreme)
    assert ids_of(beside) == ids_of(alone)
    assert sorted(others) == list(range(n))
    for token in (token for tokens in others.values() for token in tokens):
        assert 0 <= token.token_id < VOCABULARY
        assert token.logprob is not None
        assert math.isfinite(token.logprob)
        assert token.finish_reason != "lost"


@pytest.mark.parametrize("temperature", [0, 1e-40])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_tokens_are_those_of_transformers(temperature: float, penalty: float) -> None:
    model = make_model("qwen2")
    theirs, ids = reference(model), make_ids(15)
    ours = make_engine(model)  # the model belongs to it from here on
    params = SamplingParams(
        max_new_tokens=10, temperature=temperature, repetition_penalty=penalty, ignore_eos=True
    )
    [answers] = answers_of(ours, (ids, params, 1))
    expected = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=10,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=EOS_ID,
    )
    assert [token.token_id for token in answers[0]] == expected[0, len(ids) :].tolist()
    assert answers[0][0].logprob == pytest.approx(
        full_logits(theirs, ids)[-1].log_softmax(-1).amax().item(), abs=1e-4
    )


POISON = 77
"""A token whose embedding is broken: what follows it is not finite."""


def poisoned(name: str, value: float) -> TorchEngine:
    model = make_model(name, tie_word_embeddings=False)
    made = make_engine(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = value
    return made


WILD = SamplingParams(max_new_tokens=40, top_k=0, temperature=8.0, ignore_eos=True, seed=2)
"""Draws from the whole vocabulary, the broken token among it."""


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.2}, {"top_k": 250}, {"top_p": 0.999}]
)
def test_a_candidate_is_lost_after_a_token_on_which_the_model_breaks(
    name: str, value: float, options: dict[str, Any]
) -> None:
    sampling = replace(WILD, **options)
    ids, n = [one for one in make_ids(20) if one != POISON], 16
    ordinary = ([one for one in make_ids(11, seed=1) if one != POISON], NEIGHBOUR, 3)
    [sound] = answers_of(
        make_engine(make_model(name, tie_word_embeddings=False)), (ids, sampling, n)
    )
    [alone] = answers_of(poisoned(name, value), ordinary)
    broken, beside = answers_of(poisoned(name, value), (ids, sampling, n), ordinary)
    assert ids_of(beside) == ids_of(alone)
    lost = [index for index, tokens in broken.items() if tokens[-1].finish_reason == "lost"]
    assert 0 < len(lost) < n
    for index in range(n):
        expected, actual = ids_of(sound)[index], ids_of(broken)[index]
        if POISON in expected[:-1]:
            assert index in lost
            assert actual == [*expected[: expected.index(POISON) + 1], -1]
            assert "not finite" in broken[index][-1].reason
            assert broken[index][-1].logprob is None
        else:
            assert actual == expected


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("num_common", [3, 40])
def test_a_prompt_on_which_the_model_breaks_fails_alone(name: str, num_common: int) -> None:
    """Also one that begins as another does: nobody shares KV that holds NaN."""
    made = poisoned(name, math.nan)
    common = [one if one != POISON else POISON + 1 for one in make_ids(num_common)]
    ordinary = ([*common, 90, 91], NEIGHBOUR, 3)
    [alone] = answers_of(made, ordinary)
    with pytest.raises(EngineError, match="not finite") as caught:
        made.open([*common, POISON, 90], WILD, BUDGET)
    assert "overflow" in str(caught.value.hint)
    assert ids_of(answers_of(made, ordinary)[0]) == ids_of(alone)
    handle = made.open(ordinary[0], NEIGHBOUR, BUDGET)
    made.add(handle, range(3))
    begun = decode(made, num_steps=4)
    with pytest.raises(EngineError, match="not finite"):
        made.open([*common, POISON, 90], WILD, BUDGET)
    decode(made, answers=begun)
    made.close(handle)
    assert begun.of(handle) == ids_of(alone)


def test_a_token_that_the_model_does_not_have_fails_its_prompt_by_name(engine: TorchEngine) -> None:
    with pytest.raises(
        PromptError, match=f"the token {VOCABULARY}, the model knows those below {VOCABULARY}"
    ):
        engine.open([5, VOCABULARY, 6], NEIGHBOUR, BUDGET)
    assert not engine._runs


def test_a_search_goes_on_with_the_candidates_that_are_left() -> None:
    made = poisoned("llama", math.nan)
    options: dict[str, Any] = {
        "n": 16,
        "max_new_tokens": 40,
        "top_k": 0,
        "temperature": 8.0,
        "seed": 2,
    }
    result = specrej.generate(
        "abc", model=made, reward=FakeReward(), algorithm="best_of_n", memory=BUDGET, **options
    )
    lost = [candidate for candidate in result.candidates if candidate.finish_reason == "lost"]
    assert 0 < len(lost) < 16
    assert {candidate.state for candidate in lost} == {"rejected"}
    assert result.best.state == "complete"
    assert "lost" in {decision.cause for decision in result.decisions}
    assert all(
        math.isfinite(logprob) for candidate in result.candidates for logprob in candidate.logprobs
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prompt_that_loses_everybody_fails_and_says_why(value: float) -> None:
    made, calls = make_engine(make_model("llama")), count(1)
    hook = made.model.get_output_embeddings().register_forward_hook(
        lambda _module, _given, logits: (
            torch.full_like(logits, value) if next(calls) == 5 else logits
        )
    )
    with pytest.raises(
        EngineError, match="the engine lost 4 of 4, the last one because the model's logits"
    ):
        specrej.generate(
            "abc",
            model=made,
            reward=FakeReward(),
            n=4,
            max_new_tokens=8,
            algorithm="best_of_n",
            seed=1,
        )
    hook.remove()
    assert specrej.generate(
        "abc", model=made, reward=FakeReward(), n=4, max_new_tokens=8, seed=1
    ).is_complete


PROMPTS = ["abc", "q~r", "def"]
BROKEN_BYTE = "~"


@pytest.fixture(scope="module")
def broken_on_a_byte() -> TorchEngine:
    model = make_model("llama", tie_word_embeddings=False)
    made = make_engine(model)
    [token_id] = set(made.encode(BROKEN_BYTE)) - {0}
    with torch.no_grad():
        model.get_input_embeddings().weight[token_id] = math.nan
    return made


def test_a_batch_goes_on_beside_prompts_on_which_the_model_breaks(
    broken_on_a_byte: TorchEngine,
) -> None:
    options: dict[str, Any] = {"n": 3, "max_new_tokens": 8, "top_k": 5, "seed": 3, "memory": 2**20}
    outcomes = dict(
        specrej.generate_batch(PROMPTS, model=broken_on_a_byte, reward=FakeReward(), **options)
    )
    assert isinstance(outcomes[1], EngineError)
    for number in (0, 2):
        alone = specrej.generate(
            PROMPTS[number], model=broken_on_a_byte, reward=FakeReward(), **options
        )
        together = outcomes[number]
        assert isinstance(together, Result)
        assert [c.token_ids for c in together.candidates] == [c.token_ids for c in alone.candidates]
    assert not broken_on_a_byte._runs
