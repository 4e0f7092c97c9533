"""Classifiers of pairs: tiny random models, against transformers' own pass over each pair alone."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.flops import linear_flops
from specrej.rewards import as_reward
from specrej.rewards.pair_classifier import TEMPLATE, PairClassifier
from specrej.rewards.pairwise import PairwiseReward
from specrej.rewards.ranking import Pair
from specrej.types import Candidate, Message
from tiny import make_config, make_tokenizer

PROMPT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which?"},
]
TEXTS = ["Sleep well.", "", "Eat, and walk every day.", "No idea, sorry. \U0001f34e"]


def make_llama(num_labels: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForSequenceClassification
    return auto.from_config(make_config("llama", num_labels=num_labels, **changes)).eval()


def make_bert(num_labels: int) -> Any:
    torch.manual_seed(1)
    make_bert_config: Any = transformers.BertConfig
    config = make_bert_config(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=400,
        num_labels=num_labels,
        pad_token_id=0,
    )
    model: Any = transformers.BertForSequenceClassification
    return model(config).eval()


def candidates() -> list[Candidate]:
    return [Candidate(index, text=text) for index, text in enumerate(TEXTS)]


def pairs() -> list[Pair]:
    return [
        Pair(PROMPT, one, other) for one in candidates() for other in candidates() if one != other
    ]


@torch.inference_mode()
def alone(model: Any, tokenizer: Any, text: str) -> list[float]:
    """Logits of one text, as transformers alone has them."""
    encoded = tokenizer(text, return_tensors="pt")
    logits: list[float] = (
        model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        .logits[0]
        .tolist()
    )
    return logits


def batches_of(model: Any) -> list[list[list[int]]]:
    """The token ids of each batch that a model reads from here on."""
    batches: list[list[list[int]]] = []
    forward = model.forward

    def watched(*given: Any, input_ids: Any, **more: Any) -> Any:
        batches.append(input_ids.tolist())
        return forward(*given, input_ids=input_ids, **more)

    model.forward = watched
    return batches


@pytest.mark.parametrize("make", [make_llama, make_bert])
@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_probabilities_are_those_of_transformers(
    make: Any, num_labels: int, batch_size: int
) -> None:
    model, tokenizer = make(num_labels), make_tokenizer(adds_bos=True)
    expected = []
    for pair in pairs():
        text = TEMPLATE.format(prompt="Which?", a=pair.first.text, b=pair.second.text)
        logits = torch.tensor(alone(model, tokenizer, text))
        expected.append(
            torch.sigmoid(logits[0]) if num_labels == 1 else torch.softmax(logits, 0)[0]
        )
    comparer = PairClassifier((model, tokenizer), batch_size=batch_size)
    found, num_tokens = comparer.compare(pairs())
    assert found == pytest.approx([float(one) for one in expected], abs=1e-5)
    assert num_tokens == [
        len(tokenizer(TEMPLATE.format(prompt="Which?", a=a.text, b=b.text))["input_ids"])
        for _, a, b in pairs()
    ]
    assert comparer.flops_per_token == linear_flops(model)


def test_no_batch_is_larger_than_was_said() -> None:
    model = make_llama(1)
    batches = batches_of(model)
    reward = PairwiseReward(PairClassifier((model, make_tokenizer()), batch_size=5))
    session = reward.open(PROMPT)
    session.score(candidates())
    assert list(map(len, batches)) == [5, 5, 2]
    assert session.num_comparisons == 12
    assert session.num_tokens > 0


def test_a_label_says_which_output_is_for_the_first() -> None:
    model, tokenizer = make_llama(2), make_tokenizer()
    model.config.id2label = {0: "second", 1: "first"}
    by_name = PairClassifier((model, tokenizer), label="first")
    by_number = PairClassifier((model, tokenizer), label=1)
    usual, _ = PairClassifier((model, tokenizer)).compare(pairs())
    assert by_name.compare(pairs())[0] == by_number.compare(pairs())[0]
    assert by_name.compare(pairs())[0] == pytest.approx([1 - one for one in usual])
    with pytest.raises(UnknownNameError, match="third"):
        PairClassifier((model, tokenizer), label="third")


def test_texts_that_spell_special_tokens_are_texts() -> None:
    model, tokenizer = make_llama(1), make_tokenizer()
    template = "{prompt}<eos>{a}<eos>{b}"
    seen = batches_of(model)
    comparer = PairClassifier((model, tokenizer), template=template)
    comparer.compare([Pair(PROMPT, Candidate(0, text="<eos>x"), Candidate(1, text="{b}"))])
    [[row]] = seen
    assert row.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(row) == "Which?<eos><eos>x<eos>{b}"


def test_long_answers_lose_their_ends_and_a_long_prompt_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = make_llama(1), make_tokenizer()
    seen = batches_of(model)
    comparer = PairClassifier(
        (model, tokenizer), template="{prompt}|{a}|{b}", max_tokens=18, batch_size=1
    )
    given = [("abcdefgh", "ABCDEFGH"), ("ab", "ABCDEFGHIJ"), ("abcdefghij", "A"), ("abc", "ABC")]
    with caplog.at_level(logging.WARNING):
        comparer.compare(
            [Pair(PROMPT, Candidate(0, text=a), Candidate(1, text=b)) for a, b in given]
        )
    # The shortest comes first.
    assert [tokenizer.decode(row) for [row] in seen] == [
        "Which?|abc|ABC",
        "Which?|abcde|ABCDE",
        "Which?|ab|ABCDEFGH",
        "Which?|abcdefghi|A",
    ]
    assert "in 3 of 4 pairs answers lose their ends" in caplog.text
    long: list[Message] = [{"role": "user", "content": "x" * 15}]
    with pytest.raises(PromptError, match="no room for two answers"):
        comparer.compare([Pair(long, *candidates()[:2])])


def test_a_spec_opens_a_directory_and_gives_itself_again(tmp_path: Path) -> None:
    make_llama(2, pad_token_id=0).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    spec = f"pairwise:{tmp_path}#LABEL_1?template={{prompt}}%0A{{a}}%26{{b}}&scheme=knockout"
    reward = as_reward(spec)
    again = as_reward(reward.name)
    assert reward.name == again.name == spec
    scores = list(reward.open(PROMPT).score(candidates()))
    assert scores == list(again.open(PROMPT).score(candidates()))
    assert sorted(scores) == [0, 0, 1, 2]
    again.close()
    again.close()
    reward.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"template": "{a} or {b}"}, r"must have \{prompt\}, \{a\}, \{b\} once each"),
        ({"template": "{prompt}{a}{b}{b}"}, "once each"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_options_that_cannot_be_honoured(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PairClassifier((make_llama(1), make_tokenizer()), **options)


def test_more_than_two_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="has 3 outputs; one that compares two answers"):
        PairClassifier((make_llama(3), make_tokenizer()))
