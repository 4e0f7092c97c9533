"""Log-probabilities against transformers' own loss, one answer at a time and without padding."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import specrej
from real import smollm2
from specrej.errors import ModelError, PromptError, RewardError, UnknownNameError, UsageError
from specrej.flops import linear_flops
from specrej.rewards import as_reward
from specrej.rewards.reference import ReferenceReward
from specrej.types import Candidate, FinishReason, Message
from tiny import CHAT_TEMPLATE, EOS_ID, full_logits, make_model, make_tokenizer

PROMPT: list[Message] = [{"role": "user", "content": "What is 6 times 7?"}]
RENDERED = "<bos><user>What is 6 times 7?<eos><assistant>"
TEXTS = ["It is 42.", "é", "Well, that is a good question, which I cannot answer at once", "", "42"]
REASONS: list[FinishReason | None] = ["eos", None, "length", "eos", "stop"]
LOGPROBS = [[-0.5, -1.25], [-3.0], [-0.1] * 7, [-2.0], [-1.0, -0.5, -0.25]]
ANSWERS = [
    Candidate(10 + i, list(range(len(logprobs))), logprobs, text, finish_reason=reason)
    for i, (text, reason, logprobs) in enumerate(zip(TEXTS, REASONS, LOGPROBS, strict=True))
]


def answer_ids(tokenizer: Any, answer: Candidate) -> list[int]:
    return [
        *tokenizer(answer.text)["input_ids"],
        *([EOS_ID] if answer.finish_reason == "eos" else []),
    ]


@torch.no_grad()
def mean_log_prob(model: Any, prompt_ids: list[int], ids: list[int]) -> float:
    """Minus the loss that transformers computes for these labels."""
    inputs = torch.tensor([[*prompt_ids, *ids]])
    labels = torch.tensor([[*[-100] * len(prompt_ids), *ids]])
    return -float(model(input_ids=inputs, labels=labels).loss)


@pytest.fixture(scope="module")
def pair() -> Any:
    return make_model("llama"), make_tokenizer(CHAT_TEMPLATE)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_mean_is_minus_transformers_own_loss(name: str, batch_size: int) -> None:
    model, tokenizer = make_model(name), make_tokenizer(CHAT_TEMPLATE)
    prompt_ids = tokenizer(RENDERED)["input_ids"]
    rows = [answer_ids(tokenizer, answer) for answer in ANSWERS]
    means = [mean_log_prob(model, prompt_ids, ids) for ids in rows]
    session = ReferenceReward((model, tokenizer), batch_size=batch_size).open(PROMPT)
    assert session.score(ANSWERS) == pytest.approx(means, rel=1e-5)
    assert session.num_tokens == sum(len(prompt_ids) + len(ids) for ids in rows)
    sums = (
        ReferenceReward((model, tokenizer), reduce="sum", batch_size=batch_size)
        .open(PROMPT)
        .score(ANSWERS)
    )
    assert sums == pytest.approx(
        [mean * len(ids) for mean, ids in zip(means, rows, strict=True)], rel=1e-5
    )


def test_a_score_does_not_depend_on_its_batch(pair: Any) -> None:
    session = ReferenceReward(pair, reduce="sum").open(PROMPT)
    alone = [session.score([answer])[0] for answer in ANSWERS]
    assert session.score(ANSWERS) == pytest.approx(alone, rel=1e-5)
    assert session.score(ANSWERS[::-1]) == pytest.approx(alone[::-1], rel=1e-5)
    assert session.score([]) == []


def test_a_model_that_keeps_all_logits_scores_the_same(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = ReferenceReward(pair)
    few = reward.open(PROMPT).score(ANSWERS)
    assert reward._keeps_few_logits
    monkeypatch.setattr(reward, "_keeps_few_logits", False)
    assert reward.open(PROMPT).score(ANSWERS) == pytest.approx(few, rel=1e-5)


def test_minus_is_a_difference_of_sums(pair: Any) -> None:
    sums = ReferenceReward(pair, reduce="sum").open(PROMPT).score(ANSWERS)
    differences = [math.fsum(own) - other for own, other in zip(LOGPROBS, sums, strict=True)]
    assert ReferenceReward(pair, reduce="sum", minus=True).open(PROMPT).score(
        ANSWERS
    ) == pytest.approx(differences)
    for_each = [total / len(own) for own, total in zip(LOGPROBS, differences, strict=True)]
    assert ReferenceReward(pair, minus=True).open(PROMPT).score(ANSWERS) == pytest.approx(for_each)


def test_minus_itself_is_nothing(pair: Any) -> None:
    model, tokenizer = pair
    prompt_ids = tokenizer(RENDERED)["input_ids"]
    candidates = []
    for answer in ANSWERS:
        ids = answer_ids(tokenizer, answer)
        log_probs = full_logits(model, [*prompt_ids, *ids]).log_softmax(dim=-1)
        drawn = [log_probs[len(prompt_ids) + i - 1, token].item() for i, token in enumerate(ids)]
        candidates.append(
            Candidate(answer.index, ids, drawn, answer.text, finish_reason=answer.finish_reason)
        )
    scores = ReferenceReward(pair, reduce="sum", minus=True).open(PROMPT).score(candidates)
    assert scores == pytest.approx([0.0] * len(scores), abs=1e-3)


def test_an_empty_answer_is_judged_by_its_end(pair: Any) -> None:
    model, tokenizer = pair
    end = mean_log_prob(model, tokenizer(RENDERED)["input_ids"], [EOS_ID])
    empty = [Candidate(0, [9], [-1.0]), Candidate(1, [9], [-1.0], finish_reason="length")]
    assert ReferenceReward(pair).open(PROMPT).score(empty) == pytest.approx([end, end], rel=1e-5)


def test_a_model_without_a_template_continues_the_prompt() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer(adds_bos=True)
    prompt_ids = tokenizer(PROMPT[0]["content"])["input_ids"]
    ids = tokenizer("42", add_special_tokens=False)["input_ids"]
    reward = ReferenceReward((model, tokenizer))
    scores = reward.open(PROMPT).score([Candidate(0, text="42")])
    assert scores == pytest.approx([mean_log_prob(model, prompt_ids, ids)], rel=1e-5)
    with pytest.raises(PromptError, match="no chat template"):
        reward.open([{"role": "system", "content": "Be short."}, *PROMPT])


def test_a_tokenizer_without_an_end_cannot_score_the_empty_answer() -> None:
    tokenizer = make_tokenizer(CHAT_TEMPLATE)
    tokenizer.eos_token = None
    session = ReferenceReward((make_model("llama"), tokenizer)).open(PROMPT)
    with pytest.raises(RewardError, match="candidate 4: its text has no tokens"):
        session.score([Candidate(3, text="a"), Candidate(4)])


def test_minus_needs_the_generators_tokens(pair: Any) -> None:
    with pytest.raises(RewardError, match="candidate 4: it has no tokens"):
        ReferenceReward(pair, minus=True).open(PROMPT).score([ANSWERS[0], Candidate(4, text="a")])


def test_a_long_answer_loses_its_end_and_is_named(
    pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = pair
    prompt_ids = tokenizer(RENDERED)["input_ids"]
    reward = ReferenceReward(pair, max_tokens=len(prompt_ids) + 4)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        scores = reward.open(PROMPT).score(
            [Candidate(3, text="It is 42."), Candidate(4, text="It i")]
        )
    expected = mean_log_prob(model, prompt_ids, tokenizer("It i")["input_ids"])
    assert scores == pytest.approx([expected, expected], rel=1e-5)
    assert [message.split(": ")[-1] for message in caplog.messages] == [
        "the last 5 of candidate 3 are cut off"
    ]
    with pytest.raises(PromptError, match="room for an answer"):
        ReferenceReward(pair, max_tokens=len(prompt_ids)).open(PROMPT)
    assert ReferenceReward(pair).max_tokens == 512


def test_from_a_specification(pair: Any, tmp_path: Path) -> None:
    pair[0].save_pretrained(tmp_path)
    pair[1].save_pretrained(tmp_path)
    reward: Any = as_reward(f"reference:{tmp_path}?reduce=sum&minus=1")
    expected = ReferenceReward(pair, reduce="sum", minus=True).open(PROMPT).score(ANSWERS)
    assert reward.open(PROMPT).score(ANSWERS) == pytest.approx(expected, rel=1e-5)
    assert reward.name == f"reference:{tmp_path}?reduce=sum&minus=1"
    assert as_reward(reward.name).name == reward.name
    assert reward.flops_per_token == linear_flops(pair[0])
    assert as_reward(f"reference:{tmp_path}?reduce=mean&minus=0").name == f"reference:{tmp_path}"


def test_errors_say_what_to_do(pair: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a model"):
        as_reward("reference")
    with pytest.raises(UnknownNameError, match="'median'"):
        as_reward("reference:a/b?reduce=median")
    with pytest.raises(UsageError, match="minus='yes' cannot be read"):
        as_reward("reference:a/b?minus=yes")
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        ReferenceReward(pair, batch_size=0)
    with pytest.raises(ModelError, match=r"cannot open|holds no model|can open"):
        as_reward(f"reference:{tmp_path}")


def test_a_pass_that_fails_names_its_candidates(pair: Any) -> None:
    vocabulary = make_model("llama", vocab_size=40)
    with pytest.raises(
        RewardError, match=r"failed on candidates \[10, 11, 12, 13, 14\]: IndexError"
    ):
        ReferenceReward((vocabulary, pair[1])).open(PROMPT).score(ANSWERS)


@pytest.mark.slow
def test_the_real_generator_minus_itself_is_nothing() -> None:
    reward = ReferenceReward("smollm2", reduce="sum", minus=True)
    result = specrej.generate(
        "What is 6 times 7? Answer with the number only.",
        model=smollm2("fp32"),
        reward=reward,
        algorithm="best_of_n",
        n=3,
        max_new_tokens=24,
        seed=1,
    )
    assert {candidate.finish_reason for candidate in result.candidates} == {"eos", "length"}
    # Drawn tokens may spell a text that is tokenized otherwise; with this seed none does.
    assert [candidate.reward for candidate in result.candidates] == pytest.approx(
        [0.0] * 3, abs=1e-2
    )


def test_what_spells_a_special_token_is_text(pair: Any) -> None:
    session = ReferenceReward(pair).open(PROMPT)
    session.score([Candidate(0, text="a<eos><user>b", finish_reason="stop")])
    assert session.num_tokens == len(session.prompt) + len("a<eos><user>b")
