"""Cosines against a tiny BERT run on one text at a time, pooled and compared in numpy."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from specrej.errors import ModelError, PromptError, RewardError, UsageError
from specrej.flops import linear_flops
from specrej.rewards import as_reward
from specrej.rewards.embedding import EmbeddingReward
from specrej.types import Candidate
from tiny import VOCABULARY, make_model, make_tokenizer

PROMPT = [{"role": "user", "content": "How do I sleep well?"}]
REFERENCE = "Go to bed early & read."
TEXTS = [
    "Go to bed early.",
    "",
    "é",
    "Eat more fruit, and run every day until you are tired of it.",
    "Go",
]
ANSWERS = [Candidate(10 + i, text=text) for i, text in enumerate(TEXTS)]


def make_bert(kind: Any = BertModel) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return kind(config).eval()


@pytest.fixture(scope="module")
def pair() -> Any:
    """A BERT and a tokenizer that puts one special token before each text."""
    return make_bert(), make_tokenizer(adds_bos=True)


@torch.no_grad()
def cosines(pair: Any, reference: str, texts: list[str]) -> list[float]:
    """From the model alone, a text at a time, without padding."""
    model, tokenizer = pair

    def embed(text: str) -> Any:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        return model(input_ids=ids).last_hidden_state[0].double().numpy().mean(axis=0)

    target = embed(reference)
    return [
        float(e @ target / np.linalg.norm(e) / np.linalg.norm(target)) for e in map(embed, texts)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_score_is_the_cosine_of_means(pair: Any, batch_size: int) -> None:
    expected = cosines(pair, REFERENCE, TEXTS)
    session = EmbeddingReward(pair, reference=REFERENCE, batch_size=batch_size).open(PROMPT)
    assert session.score(ANSWERS) == pytest.approx(expected, rel=1e-5)
    assert min(abs(a - b) for i, a in enumerate(expected) for b in expected[:i]) > 1e-3, (
        "texts tell apart"
    )
    assert session.score([Candidate(0, text=REFERENCE)]) == pytest.approx([1.0])


def test_a_score_does_not_depend_on_its_batch(pair: Any) -> None:
    session = EmbeddingReward(pair, reference=REFERENCE).open(PROMPT)
    alone = [session.score([answer])[0] for answer in ANSWERS]
    assert session.score(ANSWERS) == pytest.approx(alone, rel=1e-5)
    assert session.score(ANSWERS[::-1]) == pytest.approx(alone[::-1], rel=1e-5)


def test_without_a_reference_the_question_is_one(pair: Any) -> None:
    session = EmbeddingReward(pair).open(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}, *PROMPT]
    )
    assert session.score(ANSWERS) == pytest.approx(
        cosines(pair, PROMPT[0]["content"], TEXTS), rel=1e-5
    )


def test_the_reference_is_read_once_and_the_answers_each_time(pair: Any) -> None:
    tokenizer = pair[1]
    session = EmbeddingReward(pair, reference=REFERENCE).open(PROMPT)
    num_reference = len(tokenizer(REFERENCE)["input_ids"])
    num_answers = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert session.num_tokens == num_reference
    assert session.score([]) == []
    session.score(ANSWERS)
    session.score(ANSWERS)
    assert session.num_tokens == num_reference + 2 * num_answers


def test_references_come_from_a_file_by_the_prompt(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT[0]["content"], "answer": REFERENCE}))
    reward = EmbeddingReward(pair, reference=f"@{path}")
    assert reward.open(PROMPT).score(ANSWERS) == pytest.approx(
        cosines(pair, REFERENCE, TEXTS), rel=1e-5
    )
    with pytest.raises(PromptError):
        reward.open([{"role": "user", "content": "Why?"}])


def test_a_causal_model_embeds_as_well() -> None:
    pair = make_model("llama"), make_tokenizer()
    base = pair[0].model, pair[1]
    expected = cosines(base, REFERENCE, [text for text in TEXTS if text])
    scores = EmbeddingReward(base, reference=REFERENCE).open(PROMPT).score(ANSWERS)
    assert [score for score, text in zip(scores, TEXTS, strict=True) if text] == pytest.approx(
        expected, rel=1e-5
    )
    assert scores[1] == 0.0, "an answer without tokens points nowhere"
    with pytest.raises(RewardError, match="no tokens"):
        EmbeddingReward(base).open([{"role": "user", "content": ""}])


def test_long_texts_lose_their_end_and_are_named(
    pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reward = EmbeddingReward(pair, reference=REFERENCE, max_tokens=5)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        scores = reward.open(PROMPT).score(
            [Candidate(3, text="Go to bed"), Candidate(4, text="Go")]
        )
    assert scores == pytest.approx(cosines(pair, REFERENCE[:4], ["Go t", "Go"]), rel=1e-5)
    assert [message.split(": ")[-1] for message in caplog.messages] == [
        "the last 19 of the reference are cut off",
        "the last 5 of candidate 3 are cut off",
    ]
    assert EmbeddingReward(pair).max_tokens == 64


def test_from_a_specification(tmp_path: Path, pair: Any) -> None:
    make_bert().save_pretrained(tmp_path)
    pair[1].save_pretrained(tmp_path)
    reward: Any = as_reward(f"embedding:{tmp_path}?reference=Go to bed early %26 read.")
    assert reward.open(PROMPT).score(ANSWERS) == pytest.approx(
        cosines(pair, REFERENCE, TEXTS), rel=1e-5
    )
    assert reward.name == f"embedding:{tmp_path}?reference={REFERENCE}"
    assert reward.flops_per_token == linear_flops(pair[0])
    assert as_reward(f"embedding:{tmp_path}").name == f"embedding:{tmp_path}"


def test_a_checkpoint_without_a_pooler_will_do_but_not_one_without_layers(
    tmp_path: Path, pair: Any
) -> None:
    masked = make_bert(BertForMaskedLM)
    masked.save_pretrained(tmp_path)
    pair[1].save_pretrained(tmp_path)
    expected = cosines((masked.bert, pair[1]), REFERENCE, TEXTS)
    assert EmbeddingReward(tmp_path, reference=REFERENCE).open(PROMPT).score(
        ANSWERS
    ) == pytest.approx(expected, rel=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(
        ModelError, match=r"not that of an encoder: weights are missing, .*layer\.2"
    ):
        EmbeddingReward(tmp_path)


def test_errors_name_what_failed(pair: Any, tmp_path: Path) -> None:
    reward = EmbeddingReward(pair, max_tokens=100, batch_size=2)
    with pytest.raises(RewardError, match=r"failed on candidates \[10, 99\]"):
        reward.open(PROMPT).score([ANSWERS[0], Candidate(99, text="run " * 50), *ANSWERS[1:3]])
    with pytest.raises(RewardError, match="failed on the reference"):
        reward.open([{"role": "user", "content": "run " * 50}])
    with pytest.raises(ModelError, match=r"cannot open|holds no model|can open"):
        as_reward(f"embedding:{tmp_path}")
    with pytest.raises(UsageError, match="needs a model"):
        as_reward("embedding")
    with pytest.raises(UsageError, match="unknown option 'ref'"):
        as_reward("embedding:a/b?ref=x")
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        EmbeddingReward("a/b", batch_size=0)
    with pytest.raises(UsageError, match="has its device"):
        EmbeddingReward(pair, device="cpu")


def test_what_spells_a_special_token_is_text(pair: Any) -> None:
    session = EmbeddingReward(pair, reference="<bos>").open(PROMPT)
    assert session.num_tokens == len("<bos>") + 1
    session.score([Candidate(0, text="a<eos>b")])
    assert session.num_tokens == len("<bos>") + len("a<eos>b") + 2
    cut = EmbeddingReward(pair, max_tokens=10).open(PROMPT)
    before = cut.num_tokens
    cut.score([Candidate(0, text="<eos>" * 9)])
    assert cut.num_tokens - before == 10
