"""Likelihood of prompt and answer together, against transformers' own loss on the whole text."""

import math
from typing import Any

import pytest
import torch

from specrej.errors import PromptError, RewardError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.likelihood import LikelihoodReward
from specrej.types import Candidate, Message
from tiny import CHAT_TEMPLATE, make_model, make_tokenizer, save_model

PROMPT: list[Message] = [{"role": "user", "content": "What is 6 times 7? "}]
ANSWERS = [Candidate(i, text=text) for i, text in enumerate(["It is 42.", "", "Well, é"])]


@torch.no_grad()
def mean_log_prob(model: Any, ids: list[int]) -> float:
    """Minus transformers' loss, which is of every token after the first."""
    inputs = torch.tensor([ids])
    return -float(model(input_ids=inputs, labels=inputs).loss)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_base_model_reads_bos_prompt_and_answer(adds_bos: bool) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer(adds_bos=adds_bos)
    session = LikelihoodReward((model, tokenizer)).open(PROMPT)
    expected = [
        tokenizer(f"<bos>What is 6 times 7? {answer.text}", add_special_tokens=False)["input_ids"]
        for answer in ANSWERS
    ]
    assert session.score(ANSWERS) == pytest.approx(
        [mean_log_prob(model, ids) for ids in expected], rel=1e-5
    )
    assert session.num_tokens == sum(map(len, expected))


def test_a_chat_model_reads_both_as_one_message() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer(CHAT_TEMPLATE)
    before: list[Message] = [{"role": "system", "content": "Be brief."}]
    for messages, head in ((PROMPT, ""), ([*before, *PROMPT], "<system>Be brief.<eos>")):
        session = LikelihoodReward((model, tokenizer)).open(messages)
        expected = [
            mean_log_prob(
                model,
                tokenizer(f"<bos>{head}<user>What is 6 times 7? {answer.text}<eos>")["input_ids"],
            )
            for answer in ANSWERS
        ]
        assert session.score(ANSWERS) == pytest.approx(expected, rel=1e-5)


def test_what_it_refuses() -> None:
    base = LikelihoodReward((make_model("llama"), make_tokenizer()))
    with pytest.raises(PromptError, match="no chat template"):
        base.open([*PROMPT, {"role": "assistant", "content": "42"}, *PROMPT])
    with pytest.raises(UsageError, match="needs a model"):
        as_reward("likelihood")
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    one = LikelihoodReward((make_model("llama"), tokenizer)).open(
        [{"role": "user", "content": "a"}]
    )
    with pytest.raises(RewardError, match="are one token"):
        one.score([Candidate(3)])


def test_it_is_a_reward_by_name(tmp_path: Any) -> None:
    reward = as_reward(f"likelihood:{save_model(tmp_path / 'tiny')}")
    (score,) = reward.open(PROMPT).score(ANSWERS[:1])
    assert math.exp(-score) > 1
    assert reward.name == f"likelihood:{tmp_path / 'tiny'}"
    reward.close()
