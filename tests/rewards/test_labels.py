"""Outputs by label, by number and by weight; and code that comes with a model, run only when asked
for.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.labels import choose_outputs, weigh
from specrej.types import Candidate
from tiny import CHAT_TEMPLATE, VOCABULARY, make_tokenizer

LABELS = {0: "bad", 1: "fair", 2: "very*good"}
PROMPT = [{"role": "user", "content": "Why?"}]
ANSWERS = [Candidate(index=0, text="so"), Candidate(index=1, text="because of it")]
REMOTE = """
from transformers import LlamaForSequenceClassification

class Gated(LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[:, :1] * 10 + output.logits[:, 1:2]
        return output
"""


def test_labels_numbers_and_weights() -> None:
    assert choose_outputs("m", LABELS, "bad") == {0: 1.0}
    assert choose_outputs("m", LABELS, 1) == {1: 1.0}
    assert choose_outputs("m", LABELS, "very*good") == {2: 1.0}
    assert choose_outputs("m", LABELS, "very*good*0.5+bad*-2+1*0.25") == {2: 0.5, 0: -2.0, 1: 0.25}
    assert choose_outputs("m", {0: "only"}, None) == {0: 1.0}
    assert weigh([1.0, 10.0, 100.0], {2: 0.5, 0: -2.0}) == 48.0


@pytest.mark.parametrize("label", ["bad*much", "bad*", "bad*0.5+fair"])
def test_weights_that_are_none(label: str) -> None:
    with pytest.raises((UsageError, UnknownNameError)):
        choose_outputs("m", LABELS, label)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    config.pad_token_id, config.id2label = None, LABELS
    make: Any = LlamaForSequenceClassification
    make(config).save_pretrained(tmp_path / "model")
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_a_weighted_sum_of_outputs(directory: str, memory_bytes: int | None) -> None:
    def scores(label: str) -> list[float]:
        return list(
            ClassifierReward(directory, label=label, memory_bytes=memory_bytes)
            .open(PROMPT)
            .score(ANSWERS)
        )

    bad, fair = scores("bad"), scores("fair")
    expected = [0.5 * a - 2 * b for a, b in zip(bad, fair, strict=True)]
    assert scores("bad*0.5+fair*-2") == pytest.approx(expected, abs=1e-6)


def test_code_that_comes_with_a_model_is_run_only_when_asked_for(directory: str) -> None:
    """A gated head of the model's own, of a type that transformers does not know."""
    plain = [
        [
            ClassifierReward(directory, label=label).open(PROMPT).score([answer])[0]
            for label in ("bad", "fair")
        ]
        for answer in ANSWERS
    ]
    path = Path(directory)
    (path / "gated.py").write_text(REMOTE)
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "gated.Gated"}
    config["architectures"] = ["Gated"]
    (path / "config.json").write_text(json.dumps(config))
    trusted = as_reward(f"classifier:{directory}#0?trust_remote_code=1")
    session = trusted.open(PROMPT)
    assert session.score(ANSWERS) == pytest.approx(
        [10 * bad + fair for bad, fair in plain], abs=1e-4
    )
    assert session.reuse == "none", "a head that is not the usual one is read whole"
    try:
        distrusting = list(ClassifierReward(directory, label="0").open(PROMPT).score(ANSWERS))
    except ModelError:
        return
    assert distrusting == pytest.approx([bad for bad, _ in plain], abs=1e-4)
