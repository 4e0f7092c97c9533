"""Candidates of several prompts in one batch: as if each prompt were scored by itself, in fewer
passes."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig

from fakes import FakeReward
from specrej.errors import RewardError
from specrej.rewards.base import BatchedReward, StatelessSession
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.embedding import EmbeddingReward
from specrej.rewards.ensemble import EnsembleReward
from specrej.rewards.function import FunctionReward
from specrej.rewards.process import ProcessReward
from specrej.rewards.reference import ReferenceReward
from specrej.rewards.together import alone, score_jointly, score_together
from specrej.types import Candidate, FinishReason, Message
from tiny import CHAT_TEMPLATE, VOCABULARY, make_config, make_model, make_tokenizer


def prompt(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def answers(*texts: str) -> list[Candidate]:
    """Every other one is complete."""
    reasons: list[FinishReason | None] = [None, "eos"]
    return [Candidate(i, text=text, finish_reason=reasons[i % 2]) for i, text in enumerate(texts)]


class Lengths:
    """Scores by the length of prompt and answer; fails on a `fatal` text. `batches` holds the
    sizes of all batches."""

    name = "lengths"
    flops_per_token = None

    def __init__(self, fatal: str | None = "fail") -> None:
        self._fatal = fatal
        self.batches: list[int] = []

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        return StatelessSession(messages[-1]["content"], alone(self._score))

    def close(self) -> None:
        """Nothing is held."""

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> list[Sequence[float]]:
        return score_jointly(asked, self._score)

    def _score(self, pairs: Sequence[tuple[str, Candidate]]) -> tuple[list[float], list[int]]:
        self.batches.append(len(pairs))
        if any(candidate.text == self._fatal for _, candidate in pairs):
            raise OSError("asked to fail")
        if any(candidate.text == "stop" for _, candidate in pairs):
            raise KeyboardInterrupt
        lengths = [(len(text), len(candidate.text)) for text, candidate in pairs]
        return [100.0 * before + after for before, after in lengths], [
            before + after for before, after in lengths
        ]


def joint(reward: Any, *asked: tuple[str, Sequence[Candidate]]) -> tuple[list[Any], list[int]]:
    """Outcomes and token counts of the prompts, in fresh sessions."""
    sessions = [(reward.open(prompt(text)), candidates) for text, candidates in asked]
    return score_together(reward, sessions), [session.num_tokens for session, _ in sessions]


def separate(reward: Any, *asked: tuple[str, Sequence[Candidate]]) -> tuple[list[Any], list[int]]:
    sessions = [(reward.open(prompt(text)), candidates) for text, candidates in asked]
    scores = [list(session.score(candidates)) for session, candidates in sessions]
    return scores, [session.num_tokens for session, _ in sessions]


# The function


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.lists(st.text("ab", max_size=5), max_size=4)), max_size=5
    )
)
def test_joint_scores_and_tokens_are_those_of_each_session(
    asked: list[tuple[str, list[str]]],
) -> None:
    reward = Lengths()
    prompts = [(text, answers(*texts)) for text, texts in asked]
    assert joint(reward, *prompts) == separate(reward, *prompts)


def test_one_batch_for_all_prompts_and_a_session_for_one() -> None:
    reward = Lengths()
    joint(reward, ("a", answers("b", "bb")), ("aa", answers("b")), ("aaa", answers("b", "bbb")))
    assert reward.batches == [5]
    asked: list[Any] = []
    reward.score_together = asked.append  # type: ignore[method-assign, assignment]
    assert joint(reward, ("a", answers("b")))[0] == [[101.0]]
    assert asked == []


def test_a_reward_without_the_method_is_asked_session_by_session() -> None:
    reward = FakeReward(lambda text: float(len(text)))
    outcomes, num_tokens = joint(reward, ("a", answers("b", "bb")), ("aa", answers("bbb")))
    assert (outcomes, num_tokens) == ([[1.0, 2.0], [3.0]], [3, 3])
    assert [session.scored for session in reward.sessions] == [[[0, 1]], [[0]]]


def test_prompts_at_fault_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    reward = Lengths()
    with caplog.at_level(logging.WARNING, logger="specrej"):
        outcomes, num_tokens = joint(
            reward, ("a", answers("b")), ("aa", answers("b", "fail")), ("aaa", answers("bb"))
        )
    assert [outcomes[0], outcomes[2]] == [[101.0], [302.0]]
    assert isinstance(outcomes[1], OSError)
    assert num_tokens == [2, 0, 5]
    assert reward.batches == [4, 1, 2, 1]
    [message] = caplog.messages
    assert (
        message
        == "reward 'lengths' failed on 3 prompts together, now one by one: OSError('asked to fail')"
    )


def test_without_the_method_too_a_prompt_fails_alone() -> None:
    reward = FunctionReward(lambda prompt, texts: [1 / len(text) for text in texts])
    one, other = joint(reward, ("a", answers("bb")), ("a", answers("")))[0]
    assert one == [0.5]
    assert isinstance(other, RewardError)
    assert "failed on candidate 0: ZeroDivisionError" in str(other)


def test_an_exception_in_the_place_of_scores_is_handed_on() -> None:
    reward, error = Lengths(), RewardError("no")
    reward.score_together = lambda asked: [[1.0], error]  # type: ignore[method-assign, list-item]
    assert joint(reward, ("a", answers("b")), ("a", answers("b")))[0] == [[1.0], error]
    assert reward.batches == []


@pytest.mark.parametrize("given", [[[1.0]], [[1.0]] * 3, None])
def test_a_method_that_gives_something_else_is_not_believed(given: Any) -> None:
    reward = Lengths()
    reward.score_together = lambda asked: given  # type: ignore[method-assign]
    assert joint(reward, ("a", answers("b")), ("aa", answers("b")))[0] == [[101.0], [201.0]]


@pytest.mark.parametrize("is_batched", [True, False])
def test_ctrl_c_passes_through(is_batched: bool) -> None:
    reward = Lengths()
    if not is_batched:
        reward.score_together = None  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        joint(reward, ("a", answers("b")), ("aa", answers("stop")))
    assert reward.batches == ([2] if is_batched else [1, 1])


# Models of transformers

PROMPTS = [
    (
        "What is 6 times 7?",
        answers("It is 42.", "6 times 7\n\nis 42", "", "forty-two, or so I think"),
    ),
    ("Why?", answers("Because.", "I do not know, and nobody does")),
    (
        "How do I sleep well, when all the others are awake?",
        answers("Go to bed early.", "é", "Read\n\na book."),
    ),
    ("Why?", answers("Go to bed early.")),
]
NUM_ANSWERS = sum(len(candidates) for _, candidates in PROMPTS)


def make_bert(auto: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        **changes,
    )
    return auto.from_config(config).eval()


def make_causal(auto: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(make_config("llama", **changes)).eval()


def classifier(batch_size: int) -> tuple[BatchedReward, nn.Module]:
    model = make_bert(transformers.AutoModelForSequenceClassification, num_labels=1)
    return ClassifierReward((model, make_tokenizer()), batch_size=batch_size), model


def open_classifier(batch_size: int) -> tuple[BatchedReward, nn.Module]:
    model = make_bert(transformers.AutoModelForSequenceClassification, num_labels=1)
    return ClassifierReward(
        (model, make_tokenizer(CHAT_TEMPLATE)), batch_size=batch_size, partial="open"
    ), model


def process(batch_size: int) -> tuple[BatchedReward, nn.Module]:
    model = make_causal(transformers.AutoModelForTokenClassification, num_labels=2)
    return ProcessReward((model, make_tokenizer()), reduce="mean", batch_size=batch_size), model


def embedding(batch_size: int) -> tuple[BatchedReward, nn.Module]:
    model = make_bert(transformers.AutoModel)
    return EmbeddingReward((model, make_tokenizer(adds_bos=True)), batch_size=batch_size), model


def reference(batch_size: int) -> tuple[BatchedReward, nn.Module]:
    model = make_model("llama")
    return ReferenceReward((model, make_tokenizer(CHAT_TEMPLATE)), batch_size=batch_size), model


FAMILIES = [classifier, open_classifier, process, embedding, reference]
Make = Callable[[int], tuple[BatchedReward, nn.Module]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("make", FAMILIES)
def test_scores_of_a_joint_batch_are_those_of_each_prompt(make: Make, batch_size: int) -> None:
    reward, _ = make(batch_size)
    outcomes, num_tokens = joint(reward, *PROMPTS)
    expected, expected_tokens = separate(reward, *PROMPTS)
    assert num_tokens == expected_tokens
    assert len(set(num_tokens)) == len(num_tokens), "all tell apart"
    for scores, by_itself in zip(outcomes, expected, strict=True):
        assert list(scores) == pytest.approx(by_itself, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_answers_of_all_prompts_fill_a_pass(make: Make) -> None:
    reward, model = make(4)
    sessions = [(reward.open(prompt(text)), candidates) for text, candidates in PROMPTS]
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda _, given, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    score_together(reward, sessions)
    assert rows == [4] * (NUM_ANSWERS // 4) + [NUM_ANSWERS % 4]
    rows.clear()
    for session, candidates in sessions:
        session.score(candidates)
    assert rows == [4, 2, 3, 1]


@pytest.mark.parametrize("make", FAMILIES)
def test_a_pass_that_fails_is_the_matter_of_one_prompt(make: Make) -> None:
    reward, model = make(64)
    [percent] = make_tokenizer()("%")["input_ids"]

    def fail(_: nn.Module, given: Any, named: dict[str, Any]) -> None:
        if (named["input_ids"] == percent).any():
            raise OSError("no percents")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    asked = [
        PROMPTS[0],
        ("How much?", [*answers("Little."), Candidate(7, text="40 %")]),
        PROMPTS[2],
    ]
    outcomes, num_tokens = joint(reward, *asked)
    expected, expected_tokens = separate(reward, asked[0], asked[2])
    assert [list(outcomes[0]), list(outcomes[2])] == [
        pytest.approx(scores, rel=1e-4) for scores in expected
    ]
    assert [num_tokens[0], num_tokens[2]] == expected_tokens
    assert isinstance(outcomes[1], RewardError)
    assert "failed on candidates [0, 7]: OSError: no percents" in str(outcomes[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", FAMILIES)
def test_a_model_that_breaks_on_an_answer_touches_no_other(make: Make, value: float) -> None:
    """Whose scores are NaN then is for the search to refuse, prompt by prompt: `checked_scores`."""
    reward, model = make(64)
    percents = ("How much?", answers("Little.", "40 %", "Much."))
    expected, _ = separate(reward, *PROMPTS[:2], percents, *PROMPTS[2:])
    [percent] = make_tokenizer()("%")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[percent] = value  # type: ignore[operator]
    outcomes, _ = joint(reward, *PROMPTS[:2], percents, *PROMPTS[2:])
    broken = outcomes[2][1]
    assert not math.isfinite(broken)
    expected[2][1] = broken
    for scores, by_itself in zip(outcomes, expected, strict=True):
        assert list(scores) == pytest.approx(by_itself, rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_causal_classifier_reads_prompt_by_prompt_and_keeps_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_causal(transformers.AutoModelForSequenceClassification, num_labels=1)
    reward: BatchedReward = ClassifierReward((model, make_tokenizer(CHAT_TEMPLATE)))
    sessions = [(reward.open(prompt(text)), candidates) for text, candidates in PROMPTS[:2]]
    assert {session.reuse for session, _ in sessions} == {"answers"}
    expected, expected_tokens = separate(reward, *PROMPTS[:2])
    outcomes = score_together(reward, sessions)
    assert outcomes == [pytest.approx(scores, rel=1e-4) for scores in expected]
    assert [session.num_tokens for session, _ in sessions] == expected_tokens
    sessions[0][0].close()
    assert not caplog.records


# Ensembles


def test_members_and_filter_of_an_ensemble_score_together() -> None:
    member, other, judge = Lengths(), Lengths(), Lengths()
    reward: BatchedReward = EnsembleReward(
        [member, other], [1, 0.5], filter=judge, filter_when="always", scale="z"
    )
    asked = [
        ("", answers("", "b", "bbb")),
        ("a", answers("b", "bb")),
        ("", answers("", "")),
        ("aa", answers("bbbb")),
    ]
    assert joint(reward, *asked) == separate(reward, *asked)
    # The filter rejects an empty answer to an empty prompt, so nobody of the third is left for the
    # members.
    assert judge.batches[0] == 8
    assert member.batches[0] == other.batches[0] == 5
    assert joint(reward, *asked)[0][2] == [-math.inf, -math.inf]


@pytest.mark.parametrize("place", ["member", "last", "filter"])
def test_a_prompt_on_which_a_member_fails_leaves_the_ensemble_alone(place: str) -> None:
    at_fault, before, behind = Lengths(), Lengths(None), Lengths(None)
    reward = {
        "member": EnsembleReward([before, at_fault, behind]),
        "last": EnsembleReward([before, behind, at_fault]),
        "filter": EnsembleReward([before, behind], filter=at_fault, filter_when="always"),
    }[place]
    asked = [("a", answers("b", "bb")), ("a", answers("b", "fail", "bbb")), ("aa", answers("bbb"))]
    outcomes, num_tokens = joint(reward, *asked)
    behind_batches = list(behind.batches)
    expected, expected_tokens = separate(reward, asked[0], asked[2])
    assert [outcomes[0], outcomes[2]] == expected
    assert [num_tokens[0], num_tokens[2]] == expected_tokens
    assert isinstance(outcomes[1], RewardError)
    assert "the member 'lengths' of the ensemble failed on candidates 0 to 2: OSError" in str(
        outcomes[1]
    )
    # Whom a member failed on, those behind it are not asked about.
    assert behind_batches == ([6] if place == "last" else [3])


def test_an_ensemble_checks_what_each_member_gives_for_each_prompt() -> None:
    odd = Lengths()
    odd.score_together = lambda asked: [[1.0], [math.nan], [2.0, 3.0]]  # type: ignore[method-assign]
    one, other, another = joint(EnsembleReward([odd]), *[("a", answers("b"))] * 3)[0]
    assert one == [1.0]
    assert str(other) == "the reward 'lengths' gave nan for candidate 0"
    assert "gave 2 scores for 1 candidates" in str(another)
