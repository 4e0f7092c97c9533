"""The relevance reward: what it feeds a stub, its scores on tiny models by onnxruntime itself, the
real one (slow).
"""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from cross_encoders import save_tokenizer, write_onnx
from specrej.errors import ModelError, PromptError, RewardError, UsageError
from specrej.hub import defaults
from specrej.rewards import as_reward
from specrej.rewards.relevance import MAX_TOKENS, RelevanceReward
from specrej.rewards.together import score_together
from specrej.rewards.windows import parse_relevance
from specrej.types import Candidate

QUESTION = [{"role": "user", "content": "Give three tips for staying healthy."}]
GOOD = (
    "1. Eat a balanced diet with plenty of fruit and vegetables. 2. Exercise regularly, at least "
    "30 minutes a day. "
    "3. Get enough sleep every night."
)
HALF = "1. Eat a balanced"
OFF_TOPIC = "The capital of France is Paris, a city on the Seine."


class StubModel:
    """In the place of onnxruntime's session: gives the number of the answer's tokens, keeps what
    it was fed."""

    output_shapes: Sequence[Sequence[Any]] = [["batch_size", 1]]

    def __init__(self, path: Path, options: object, providers: Sequence[str]) -> None:
        self.fed: list[Mapping[str, npt.NDArray[np.int64]]] = []

    def get_inputs(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=name) for name in ("input_ids", "attention_mask", "token_type_ids")
        ]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(shape=shape) for shape in self.output_shapes]

    def run(
        self, _: None, inputs: Mapping[str, npt.NDArray[np.int64]]
    ) -> list[npt.NDArray[np.float32]]:
        self.fed.append(inputs)
        return [inputs["token_type_ids"].sum(axis=1, keepdims=True).astype(np.float32) - 1]


@pytest.fixture
def model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cross-encoder of a stub and a tokenizer of two words, which pads and truncates like the
    real one's file."""
    monkeypatch.setattr("onnxruntime.InferenceSession", StubModel)
    save_tokenizer(tmp_path)
    return tmp_path


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(index=index, text=text) for index, text in enumerate(texts)]


def fed(reward: RelevanceReward) -> list[list[int]]:
    return [inputs["input_ids"].tolist()[0] for inputs in reward._model.fed]


def test_reads_question_and_answer_without_padding(model_dir: Path) -> None:
    reward = RelevanceReward(model_dir)
    session = reward.open([{"role": "user", "content": "no no"}])
    assert session.score(candidates("yes yes yes", "")) == [3.0, 0.0]
    assert sorted(fed(reward)) == [[1, 5, 5, 2, 2], [1, 5, 5, 2, 4, 4, 4, 2]]
    assert session.num_tokens == 13


def test_counts_tokens_over_all_decisions(model_dir: Path) -> None:
    session = RelevanceReward(model_dir).open([{"role": "user", "content": "no"}])
    assert session.score([]) == []
    assert session.num_tokens == 0
    session.score(candidates("yes"))
    session.score(candidates("yes yes"))
    assert session.num_tokens == 5 + 6


@pytest.mark.parametrize(
    ("turns", "question"),
    [
        ([("user", "yes"), ("assistant", "yes yes"), ("user", "no")], [5]),
        ([("user", "no no"), ("assistant", "yes")], [5, 5]),
        ([("system", "no")], [5]),
    ],
)
def test_question_is_the_last_user_message(
    model_dir: Path, turns: list[tuple[str, str]], question: list[int]
) -> None:
    reward = RelevanceReward(model_dir)
    reward.open([{"role": role, "content": content} for role, content in turns]).score(
        candidates("")
    )
    assert fed(reward) == [[1, *question, 2, 2]]


def test_too_long_answer_is_cut_on_the_right_and_named(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = RelevanceReward(model_dir)
    session = reward.open([{"role": "user", "content": "no no"}])
    fits = " ".join(["yes"] * (MAX_TOKENS - 5))
    with caplog.at_level(logging.WARNING, logger="specrej"):
        session.score(candidates(fits, "yes"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="specrej"):
        scores = session.score(candidates("yes", fits + " no" * 7))
    assert scores == [1.0, MAX_TOKENS - 5]
    assert all(ids.count(5) == 2 for ids in fed(reward)), (
        "the cut took another end than the right one"
    )
    [record] = caplog.records
    assert "candidate 1 by 7" in record.getMessage()
    assert "candidate 0" not in record.getMessage()


def test_too_long_question_leaves_half_of_the_room(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = RelevanceReward(model_dir)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        session = reward.open([{"role": "user", "content": "no " * 600}])
        session.score(candidates("yes " * 200))
        session.score(candidates("yes"))
    [record] = caplog.records
    assert "346 tokens" in record.getMessage()
    assert [ids.count(5) for ids in fed(reward)] == [254, 254]


def test_empty_prompt_is_refused(model_dir: Path) -> None:
    with pytest.raises(PromptError):
        RelevanceReward(model_dir).open([])


def test_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="onnxruntime") as caught:
        RelevanceReward("anywhere")
    assert caught.value.hint == "pip install 'specrej[onnx]'"


def test_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        RelevanceReward(tmp_path)


def test_damaged_tokenizer_is_a_model_error(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ModelError, match="cannot open"):
        RelevanceReward(model_dir)


@pytest.mark.parametrize(
    "shapes", [[["batch", "width", 1]], [["batch", "labels"]], [["batch", 1], ["batch", 1]]]
)
def test_what_is_no_cross_encoder_is_refused(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, shapes: Sequence[Sequence[Any]]
) -> None:
    monkeypatch.setattr(StubModel, "output_shapes", shapes)
    with pytest.raises(ModelError, match=r"\[batch, outputs\]"):
        RelevanceReward(model_dir)


@pytest.fixture
def onnx_dir(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tokenizer of `model_dir` beside a model for onnxruntime itself, with three outputs."""
    monkeypatch.undo()
    write_onnx(model_dir / "model.onnx", 3)
    return model_dir


def onnx_logits(directory: Path, ids: list[int], types: list[int]) -> list[float]:
    model = onnxruntime.InferenceSession(
        directory / "model.onnx", providers=["CPUExecutionProvider"]
    )
    inputs = {"input_ids": np.array([ids]), "token_type_ids": np.array([types])}
    return [float(logit) for logit in model.run(None, inputs)[0][0]]


def test_scores_of_any_directory_are_onnxruntimes_own(onnx_dir: Path) -> None:
    texts = ["yes yes no", "", "no"]
    rows = [
        ([1, 5, 2, 4, 4, 5, 2], [0] * 3 + [1] * 4),
        ([1, 5, 2, 2], [0] * 3 + [1]),
        ([1, 5, 2, 5, 2], [0] * 3 + [1] * 2),
    ]
    expected = [onnx_logits(onnx_dir, *row) for row in rows]
    for label in range(3):
        reward = parse_relevance(f"{onnx_dir}?label={label}")
        scores = reward.open([{"role": "user", "content": "no"}]).score(candidates(*texts))
        assert scores == [logits[label] for logits in expected]
        assert reward.name == f"relevance:{onnx_dir}?label={label}"
        assert reward.flops_per_token is None
    assert len({logit for logits in expected for logit in logits}) == 9, "all tell apart"
    write_onnx(onnx_dir / "model.onnx", 1)
    single: Any = as_reward(f"relevance:{onnx_dir}")
    assert single.name == f"relevance:{onnx_dir}"
    session = single.open([{"role": "user", "content": "no"}])
    assert session.score(candidates(*texts)) == [onnx_logits(onnx_dir, *row)[0] for row in rows]


@pytest.mark.parametrize(
    ("label", "message"), [(None, "has 3 outputs"), (3, "no output 3"), (-1, "no output -1")]
)
def test_several_outputs_need_a_number(onnx_dir: Path, label: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RelevanceReward(onnx_dir, label=label)


def test_a_label_is_a_number(onnx_dir: Path) -> None:
    with pytest.raises(UsageError, match="label='good' cannot be read"):
        parse_relevance(f"{onnx_dir}?label=good")


def test_a_model_that_takes_no_such_length_names_the_candidate(onnx_dir: Path) -> None:
    write_onnx(onnx_dir / "model.onnx", 1, width=5)
    session = RelevanceReward(onnx_dir).open([{"role": "user", "content": "no"}])
    assert len(session.score(candidates("yes", "no"))) == 2
    with pytest.raises(RewardError, match="failed on candidate 1, of 6 tokens"):
        session.score(candidates("yes", "no no"))


def test_answers_to_several_prompts_go_through_one_pool(
    onnx_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = RelevanceReward(onnx_dir, label=1)
    asked = [
        ("no", ["yes yes no", "", "no"]),
        ("yes no yes", ["yes"]),
        ("no", ["no", "yes yes no"]),
    ]
    sessions = [reward.open([{"role": "user", "content": question}]) for question, _ in asked]
    pools: list[int] = []

    def make_pool(max_workers: int) -> ThreadPoolExecutor:
        pools.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    monkeypatch.setattr("specrej.rewards.relevance.ThreadPoolExecutor", make_pool)
    pairs = [
        (session, candidates(*texts)) for session, (_, texts) in zip(sessions, asked, strict=True)
    ]
    together = score_together(reward, pairs)
    assert len(pools) == 1
    num_tokens = [session.num_tokens for session in sessions]
    assert together == [session.score(batch) for session, batch in pairs]
    assert [session.num_tokens for session in sessions] == [2 * count for count in num_tokens]
    assert num_tokens == [7 + 4 + 5, 7, 5 + 7]


def test_a_prompt_that_the_model_cannot_read_fails_alone(onnx_dir: Path) -> None:
    write_onnx(onnx_dir / "model.onnx", 1, width=5)
    reward = RelevanceReward(onnx_dir)
    sessions = [
        reward.open([{"role": "user", "content": question}]) for question in ("no", "no no", "yes")
    ]
    one, other, another = score_together(
        reward, [(session, candidates("yes")) for session in sessions]
    )
    assert [one, another] == [session.score(candidates("yes")) for session in sessions[::2]]
    assert "failed on candidate 0, of 6 tokens" in str(other)


def test_cut_answers_of_several_prompts_are_all_named(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = RelevanceReward(model_dir)
    sessions = [
        reward.open([{"role": "user", "content": question}]) for question in ("no", "no no")
    ]
    with caplog.at_level(logging.WARNING, logger="specrej"):
        long = candidates("yes " * MAX_TOKENS)
        assert score_together(reward, [(session, long) for session in sessions]) == [
            [MAX_TOKENS - 4],
            [MAX_TOKENS - 5],
        ]
    [message] = caplog.messages
    assert message.endswith("candidate 0 by 4, candidate 0 by 5")


@pytest.fixture(scope="module")
def real() -> RelevanceReward:
    return RelevanceReward()


@pytest.mark.slow
def test_real_scores_rank_good_half_and_off_topic(real: RelevanceReward) -> None:
    good, half, unsure, off_topic = real.open(QUESTION).score(
        candidates(GOOD, HALF, "I don't know", OFF_TOPIC)
    )
    assert good > half > unsure > off_topic
    # Wide enough for the kernels of other CPUs; a wrong pair order or lost token types moves scores
    # by more.
    assert [good, half, unsure, off_topic] == pytest.approx([1.4, -4.0, -9.5, -11.1], abs=1.0)


@pytest.mark.slow
def test_real_score_does_not_depend_on_its_neighbours(real: RelevanceReward) -> None:
    texts = [GOOD, HALF, "", OFF_TOPIC, "tips " * 300, "Schlaf gut. 日本語"]
    session = real.open(QUESTION)
    alone = [session.score(candidates(text))[0] for text in texts]
    assert session.score(candidates(*texts)) == alone
    assert session.score(candidates(*reversed(texts))) == alone[::-1]
    assert all(math.isfinite(score) for score in alone)


@pytest.mark.slow
def test_real_model_reads_no_more_than_it_can(
    real: RelevanceReward, caplog: pytest.LogCaptureFixture
) -> None:
    session = real.open(QUESTION)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        [score] = session.score(candidates(GOOD * 40))
    assert math.isfinite(score)
    assert session.num_tokens == MAX_TOKENS
    assert "candidate 0" in caplog.text


@pytest.mark.slow
def test_the_real_model_as_a_directory_scores_as_onnxruntime_alone() -> None:
    directory = defaults.locate("relevance")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    model = onnxruntime.InferenceSession(
        directory / "model.onnx", providers=["CPUExecutionProvider"]
    )
    expected = []
    for text in (GOOD, HALF, OFF_TOPIC):
        pair = tokenizer.encode(QUESTION[0]["content"], text)
        columns = {
            "input_ids": pair.ids,
            "attention_mask": pair.attention_mask,
            "token_type_ids": pair.type_ids,
        }
        logits = model.run(None, {name: np.array([values]) for name, values in columns.items()})[0]
        expected.append(float(logits[0, 0]))
    reward: Any = as_reward(f"relevance:{directory}")
    assert reward.open(QUESTION).score(candidates(GOOD, HALF, OFF_TOPIC)) == pytest.approx(
        expected, rel=1e-5
    )


def test_what_spells_a_special_token_is_text(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(model_dir / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.save(path)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        reward = RelevanceReward(model_dir)
    reward.open([{"role": "user", "content": "no[SEP]"}]).score(candidates("yes [SEP] no"))
    assert fed(reward) == [[1, 5, 3, 3, 3, 2, 4, 3, 3, 3, 5, 2]]
    assert not caplog.messages
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(path)
    with caplog.at_level(logging.WARNING, logger="specrej"):
        RelevanceReward(model_dir)
    assert caplog.messages[-1].endswith(
        "its tokenizer takes these texts for special tokens: [CLS], [SEP]"
    )


@pytest.mark.slow
def test_an_answer_cannot_end_the_real_models_text() -> None:
    reward: Any = as_reward("relevance")
    ids = reward._tokenizer.encode(
        "[CLS] healthy [SEP] tips [PAD][MASK]", add_special_tokens=False
    ).ids
    assert not {
        reward._tokenizer.token_to_id(text) for text in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    } & set(ids)
