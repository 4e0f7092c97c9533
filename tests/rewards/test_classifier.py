"""Tiny random classifiers against transformers itself, one conversation at a time and without
padding."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from specrej.errors import ModelError, PromptError, RewardError, UnknownNameError, UsageError
from specrej.rewards.classifier import ClassifierReward, choose_padding
from specrej.rewards.conversations import until_pooled
from specrej.types import Candidate

SPECIALS = ["<unk>", "<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "[CLS]", "[SEP]"]
WORDS = [
    "what",
    "is",
    "a",
    "good",
    "tip",
    "eat",
    "sleep",
    "run",
    "more",
    "and",
    "less",
    "well",
    "every",
    "day",
    "or",
    "never",
]
EOS, PAD = 2, 3
TEMPLATE = (
    "<bos> {% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% "
    "endfor %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
PROMPT = [{"role": "user", "content": "what is a good tip"}]
TEXTS = [
    "eat well",
    "",
    "run more and sleep well every day or eat less",
    "sleep <eos>",
    "day <pad> <eos> <eos>",
]
ANSWERS = [Candidate(index=10 + i, text=text) for i, text in enumerate(TEXTS)]
SMALL: dict[str, Any] = {
    "vocab_size": len(SPECIALS) + len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


def chat_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Adds <bos> of its own, as Llama's does, and its template writes one too."""
    words = Tokenizer(
        WordLevel({word: i for i, word in enumerate(SPECIALS + WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **special
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def pair_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(
        WordLevel({word: i for i, word in enumerate(SPECIALS + WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 6), ("[SEP]", 7)],
    )
    words.enable_padding(
        length=512, pad_id=PAD, pad_token="<pad>"
    )  # as the reranker's tokenizer.json has it
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save(directory: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def chat_model(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_labels": 1, "num_key_value_heads": 1, **SMALL, **config}
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(**arguments))  # type: ignore[no-untyped-call]
    return Qwen2ForSequenceClassification(Qwen2Config(**arguments))  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """No padding token anywhere; conversations end with EOS."""
    return save(tmp_path_factory.mktemp("llama"), chat_model("llama"), chat_tokenizer())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = BertConfig(id2label={0: "bad", 1: "fair", 2: "good"}, pad_token_id=PAD, **SMALL)
    return save(
        tmp_path_factory.mktemp("bert"), BertForSequenceClassification(config), pair_tokenizer()
    )


def conversation(text: str, special_tokens: list[str]) -> list[dict[str, str]]:
    """As it is to be read: what spells a special token is read character by character, by a
    tokenizer of words."""
    words = (" ".join(word) if word in special_tokens else word for word in text.split())
    return [*PROMPT, {"role": "assistant", "content": " ".join(words)}]


@torch.no_grad()
def reference(
    directory: str, texts: list[str] = TEXTS, max_tokens: int = 64
) -> tuple[list[list[float]], int]:
    """All logits of each conversation, from transformers alone, and the tokens read."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(directory)
    rows, num_tokens = [], 0
    for text in texts:
        if tokenizer.chat_template:
            turns = conversation(text, tokenizer.all_special_tokens)
            ids = tokenizer.apply_chat_template(turns, return_dict=False)[:max_tokens]
            assert ids.count(1) == 1, "one BOS"
            encoding = {"input_ids": torch.tensor([ids])}
        else:
            # Lists: given single texts, transformers takes an empty second one for none.
            encoding = dict(tokenizer([PROMPT[0]["content"]], [text], return_tensors="pt"))
            assert encoding["token_type_ids"].any()
        num_tokens += len(
            until_pooled(encoding["input_ids"][0].tolist(), model.config.pad_token_id)
        )
        rows.append(model(**encoding).logits[0].tolist())
    return rows, num_tokens


def score(reward: ClassifierReward, answers: list[Candidate] = ANSWERS) -> list[float]:
    return list(reward.open(PROMPT).score(answers))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("config_pad", "tokenizer_pad"),
    [
        (None, None),
        (EOS, None),
        (EOS, "<eos>"),
        (None, "<eos>"),
        (None, "<pad>"),
        (PAD, "<pad>"),
        (PAD, "<eos>"),
    ],
)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_padded_batch_scores_as_each_row_alone(
    tmp_path: Path, kind: str, config_pad: int | None, tokenizer_pad: str | None, batch_size: int
) -> None:
    special = {} if tokenizer_pad is None else {"pad_token": tokenizer_pad}
    directory = save(tmp_path, chat_model(kind, pad_token_id=config_pad), chat_tokenizer(**special))
    expected, num_tokens = reference(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    # Not by AutoTokenizer, which reads every tokenizer beside a Qwen2 model as a byte-level one.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    whole, shared = (
        ClassifierReward(
            (copy.deepcopy(model), tokenizer), batch_size=batch_size, memory_bytes=memory
        ).open(PROMPT)
        for memory in (0, None)
    )
    for session in (whole, shared):
        assert session.score(ANSWERS) == pytest.approx(
            [row[0] for row in expected], rel=1e-5, abs=1e-5
        )
    assert (whole.reuse, whole.num_tokens) == ("none", num_tokens)
    num_prompt = len(["<bos>", "<user>", *PROMPT[0]["content"].split(), "<eos>", "<assistant>"])
    # Where EOS is padding, the empty answer is scored at the last token of the template, then read
    # with each answer.
    num_again = len(ANSWERS) if config_pad == EOS else 0
    assert (shared.reuse, shared.num_tokens) == (
        "answers",
        num_tokens - (len(ANSWERS) - 1) * num_prompt + num_again,
    )
    assert min(abs(a[0] - b[0]) for i, a in enumerate(expected) for b in expected[:i]) > 1e-4, (
        "rows tell apart"
    )


def test_a_pair_without_a_template_scores_as_each_row_alone(bert: str) -> None:
    expected, num_tokens = reference(bert)
    for output, label in enumerate(["bad", "fair", "good"]):
        session = ClassifierReward(bert, label=label, batch_size=3).open(PROMPT)
        assert session.score(ANSWERS) == pytest.approx(
            [row[output] for row in expected], rel=1e-5, abs=1e-5
        )
        assert session.num_tokens == num_tokens


def test_a_padding_id_outside_the_vocabulary_is_none() -> None:
    assert choose_padding(5, 10, [5, 5]) == 5
    assert choose_padding(None, 10, [0, 1, 3]) == 2
    assert choose_padding(-1, 10, [0]) == 1
    assert choose_padding(10, 10, [1]) == 0


def test_a_session_that_keeps_nothing_counts_and_scores_again(llama: str) -> None:
    session = ClassifierReward(llama, memory_bytes=0).open(PROMPT)
    assert session.score([]) == []
    assert session.num_tokens == 0
    first = session.score(ANSWERS)
    once = session.num_tokens
    session.drop([10, 11])
    assert session.score(ANSWERS[2:]) == pytest.approx(first[2:], rel=1e-5, abs=1e-5)
    assert once < session.num_tokens < 2 * once
    session.close()


def test_a_loaded_pair_is_taken_as_it_is(llama: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(llama).train()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama)
    scores = score(ClassifierReward((model, tokenizer)))
    assert scores == score(ClassifierReward(llama))
    assert (model.config.pad_token_id, tokenizer.pad_token) == (None, None)
    with pytest.raises(UsageError, match="has its device"):
        ClassifierReward((model, tokenizer), device="cpu")


def test_labels_by_name_and_by_number(bert: str) -> None:
    assert [ClassifierReward(bert, label=label).weights for label in ("good", 1, "0")] == [
        {2: 1.0},
        {1: 1.0},
        {0: 1.0},
    ]
    assert ClassifierReward(bert, label="good").name == f"classifier:{bert}#good"


@pytest.mark.parametrize("label", ["goood", 3, "-1"])
def test_an_unknown_label_lists_the_known_ones(bert: str, label: str | int) -> None:
    with pytest.raises(UnknownNameError, match=str(label)) as caught:
        ClassifierReward(bert, label=label)
    assert "0 (bad), 1 (fair), 2 (good)" in str(caught.value.hint)


def test_several_outputs_need_a_label(bert: str) -> None:
    with pytest.raises(UsageError, match=r"3 outputs: 0 \(bad\), 1 \(fair\), 2 \(good\)"):
        ClassifierReward(bert)


@pytest.mark.parametrize("size", ["batch_size", "max_tokens"])
def test_sizes_are_at_least_one(size: str) -> None:
    arguments: dict[str, Any] = {size: 0}
    with pytest.raises(UsageError, match=f"{size} must be at least 1, got 0"):
        ClassifierReward("never/opened", **arguments)


def test_a_long_conversation_is_cut_on_the_right_and_said(
    llama: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, num_tokens = reference(llama, max_tokens=12)
    session = ClassifierReward(llama, max_tokens=12, memory_bytes=0).open(PROMPT)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        scores = session.score(ANSWERS)
    assert scores == pytest.approx([row[0] for row in expected], rel=1e-5, abs=1e-5)
    assert session.num_tokens == num_tokens
    [long, *others] = caplog.messages
    assert "reads 12 tokens: the last 8 of candidate 12 are cut off" in long
    assert [message.split(": ")[-1] for message in others] == [
        "the last 4 of candidate 13 are cut off",
        "the last 10 of candidate 14 are cut off",
    ]


def test_a_long_pair_keeps_its_special_tokens(bert: str, caplog: pytest.LogCaptureFixture) -> None:
    reward = ClassifierReward(bert, label="good", max_tokens=10)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        long, short = score(reward, [ANSWERS[2], Candidate(index=0, text="run more")])
    assert long == pytest.approx(short, rel=1e-5, abs=1e-5)
    parsed, cut = caplog.messages
    assert cut.endswith(": the last 8 of candidate 12 are cut off")
    # A model of whole words holds its special tokens among them: what cannot be had is said on
    # opening.
    assert parsed.endswith(
        ": its tokenizer takes these texts for special tokens: <pad>, [CLS], [SEP]"
    )


def test_the_default_limit_is_the_models_or_the_tokenizers(llama: str, bert: str) -> None:
    assert ClassifierReward(llama).max_tokens == 64
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert, model_max_length=48)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    assert ClassifierReward((model, tokenizer), label=0).max_tokens == 48


@pytest.mark.parametrize("source", ["llama", "bert"])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    source: str, request: pytest.FixtureRequest
) -> None:
    label = None if source == "llama" else "good"
    reward = ClassifierReward(request.getfixturevalue(source), label=label)
    with pytest.raises(PromptError, match="reads 64: it would see no answer"):
        reward.open([{"role": "user", "content": "tip " * 70}])


def test_a_template_that_refuses_the_roles_is_a_reward_error(llama: str) -> None:
    with pytest.raises(RewardError, match=r"refuses the conversation.*no system role"):
        ClassifierReward(llama).open([{"role": "system", "content": "be good"}, *PROMPT])


def test_a_forward_pass_that_fails_names_its_candidates(bert: str) -> None:
    reward = ClassifierReward(bert, label="good", batch_size=2, max_tokens=100)
    with pytest.raises(RewardError, match=r"failed on candidates \[10, 99\]: .*Error") as caught:
        score(reward, [ANSWERS[0], Candidate(index=99, text="run " * 80)])
    assert caught.value.__cause__ is not None


def test_a_checkpoint_without_a_head_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    language_model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SMALL))
    directory = save(tmp_path, language_model, chat_tokenizer())
    capfd.readouterr()
    with pytest.raises(
        ModelError, match=r"a sequence classifier: weights are missing, score\.weight"
    ) as caught:
        ClassifierReward(directory)
    assert "trained as a sequence classifier" in str(caught.value.hint)
    assert capfd.readouterr() == ("", "")


def test_opening_prints_nothing(llama: str, capfd: pytest.CaptureFixture[str]) -> None:
    score(ClassifierReward(llama))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_not_there_or_broken_is_a_model_error(llama: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(llama).iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[: 100 if path.suffix == ".safetensors" else None]
        )
    no_tokenizer = tmp_path / "no_tokenizer"
    chat_model("llama").save_pretrained(no_tokenizer)
    for directory in (tmp_path / "nowhere", tmp_path, broken, no_tokenizer):
        with pytest.raises(ModelError, match=r"cannot open|holds no model|can open") as caught:
            ClassifierReward(directory)
        assert caught.value.hint
