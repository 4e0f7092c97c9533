"""The relevance of long answers, window by window: against the cross-encoder on each window."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cross_encoders import save_tokenizer, write_onnx
from specrej.errors import UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.rewards.relevance import FLOPS_PER_TOKEN, RelevanceReward
from specrej.rewards.together import score_together
from specrej.rewards.windows import WindowedRelevance
from specrej.testing import RewardSuite
from specrej.types import Candidate

QUESTION = [{"role": "user", "content": "no yes"}]
SPECIAL = 3  # [CLS] and two [SEP]
WORDS = st.lists(st.sampled_from(["yes", "no", "who"]), max_size=30)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tokenizer(path)
    write_onnx(path / "model.onnx", 1)
    return path


@cache
def opened(directory: Path, size: int) -> WindowedRelevance:
    return WindowedRelevance(size, directory)


@cache
def plain(directory: Path) -> RelevanceReward:
    return RelevanceReward(directory)


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(index=index, text=text) for index, text in enumerate(texts)]


def scores_of(reward: Reward, *texts: str) -> Sequence[float]:
    session = reward.open(QUESTION)
    scores = session.score(candidates(*texts))
    session.close()
    return scores


def cut(words: Sequence[str], size: int) -> list[Sequence[str]]:
    return [words[start : start + size] for start in range(0, len(words), size)] or [[]]


@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_answer_scores_the_mean_of_its_windows_by_their_tokens(
    directory: Path, answers: list[list[str]], size: int
) -> None:
    scores = scores_of(opened(directory, size), *map(" ".join, answers))
    for words, score in zip(answers, scores, strict=True):
        windows = cut(words, size)
        alone = scores_of(plain(directory), *map(" ".join, windows))
        if len(windows) == 1:
            assert score == alone[0], "an answer of one window scores as before"
        total = sum(one * len(window) for one, window in zip(alone, windows, strict=True))
        assert score == pytest.approx(total / len(words) if words else alone[0], abs=1e-12)


@given(WORDS, st.lists(st.integers(0, 30), max_size=6), st.integers(1, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_growing_answer_scores_as_a_fresh_one_and_a_full_window_is_read_once(
    directory: Path, words: list[str], ends: list[int], size: int
) -> None:
    reward = opened(directory, size)
    session = reward.open(QUESTION)
    held: set[tuple[str, ...]] = set()
    num_tokens = 0
    for end in sorted(ends):
        text, windows = " ".join(words[:end]), {tuple(one) for one in cut(words[:end], size)}
        num_tokens += sum(len(window) + 2 + SPECIAL for window in windows - held)
        held = windows
        assert session.score(candidates(text)) == scores_of(reward, text)
        assert session.num_tokens == num_tokens
    session.close()


def test_what_ends_a_full_window_may_still_change(directory: Path) -> None:
    session = opened(directory, 2).open(QUESTION)
    session.score(candidates("yes no yes"))
    before = session.num_tokens
    changed = candidates("yes nobody yes")
    assert session.score(changed) == scores_of(opened(directory, 2), "yes nobody yes")
    assert session.num_tokens == before + 2 + 2 + SPECIAL


def test_dropped_candidates_are_forgotten(directory: Path) -> None:
    session = opened(directory, 2).open(QUESTION)
    session.score(candidates("yes no yes", "no"))
    session.drop([0])
    assert list(session.known) == [1]
    session.close()
    assert not session.known


def test_prompts_together_score_as_alone_and_count_their_own(directory: Path) -> None:
    reward = opened(directory, 2)
    questions = ("no", "yes yes no")
    texts = [["yes no yes", ""], ["no yes no no no", "yes no yes", "no"]]
    sessions = [reward.open([{"role": "user", "content": question}]) for question in questions]
    asked = [(one, candidates(*batch)) for one, batch in zip(sessions, texts, strict=True)]
    together = score_together(reward, asked)
    for question, batch, session, scores in zip(questions, texts, sessions, together, strict=True):
        alone = reward.open([{"role": "user", "content": question}])
        assert scores == alone.score(candidates(*batch))
        assert session.num_tokens == alone.num_tokens


@pytest.mark.parametrize("options", ["window=4", "label=2", "label=2&window=4"])
def test_the_name_is_a_spec_that_opens_the_same_reward(tmp_path: Path, options: str) -> None:
    save_tokenizer(tmp_path)
    write_onnx(tmp_path / "model.onnx", 3 if "label" in options else 1)
    reward = as_reward(f"relevance:{tmp_path}?{options}")
    again = as_reward(reward.name)
    assert again.name == reward.name == f"relevance:{tmp_path}?{options}"
    assert scores_of(again, "yes no") == scores_of(reward, "yes no")


@pytest.mark.parametrize("options", ["window=4", "label=0", "label=0&window=4"])
def test_so_is_the_name_with_the_default_model(
    directory: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.setattr("specrej.rewards.relevance.locate", lambda name: directory)
    reward = as_reward(f"relevance:?{options}")
    assert as_reward(reward.name).name == reward.name == f"relevance:?{options}"


def test_a_window_within_an_ensemble(directory: Path) -> None:
    spec = f"relevance:{directory}?window=4"
    reward = as_reward(f"ensemble:'{spec}'*0.5+regex:yes")
    assert as_reward(reward.name).name == reward.name
    [score] = scores_of(reward, "yes no no yes no")
    [alone] = scores_of(as_reward(spec), "yes no no yes no")
    assert score == pytest.approx(0.5 * alone + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("window=0", "window must be at least 1, got 0"),
        ("window=256", "window must be at most 255 tokens, got 256"),
        ("window=long", "window='long' cannot be read"),
        ("window=", "window='' cannot be read"),
    ],
)
def test_a_window_that_cannot_be_read_is_refused(
    directory: Path, options: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        as_reward(f"relevance:{directory}?{options}")


def test_an_option_that_is_not_known_is_named(directory: Path) -> None:
    with pytest.raises(UnknownNameError, match="known: label, window") as caught:
        as_reward(f"relevance:{directory}?windows=4")
    assert "window" in str(caught.value)


def test_the_longest_question_leaves_room_for_the_largest_window(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened(directory, 255).open([{"role": "user", "content": "no " * 600}])
    session.score(candidates("yes " * 255))
    assert session.num_tokens == 512
    assert ["of the question" in message for message in caplog.messages] == [True]


@pytest.fixture(scope="module")
def real() -> Any:
    return as_reward("relevance:?window=160")


@pytest.mark.slow
def test_the_real_model_sees_what_an_answer_becomes_after_512_tokens(real: Any) -> None:
    assert (real.name, real.flops_per_token) == ("relevance:?window=160", FLOPS_PER_TOKEN)
    question = [{"role": "user", "content": "Give three tips for staying healthy."}]
    tip = (
        "Eat a balanced diet with plenty of fruit and vegetables to stay healthy. Exercise "
        "regularly, and sleep for eight hours every night: these tips keep you healthy. "
    )
    drift = "The capital of France is Paris, a city on the Seine with many old bridges. "
    good, drifts, loops = tip * 30, tip * 18 + drift * 25, tip * 18 + "and the the " * 120
    short = as_reward("relevance").open(question).score(candidates(good, drifts, loops))
    assert len(set(short)) == 1, "what comes after 512 tokens does not count"
    whole = real.open(question).score(candidates(good, drifts, loops))
    assert whole[0] > max(whole[1:]) + 1
    assert all(math.isfinite(score) for score in whole)


class TestWindowed(RewardSuite):
    @pytest.fixture
    def reward(self, directory: Path) -> Reward:
        return opened(directory, 3)

    @pytest.fixture
    def opening(self, directory: Path) -> Callable[[], Reward]:
        return lambda: WindowedRelevance(3, directory)


@pytest.mark.slow
class TestRealWindowed(RewardSuite):
    @pytest.fixture
    def reward(self, real: Reward) -> Reward:
        return real

    @pytest.fixture
    def opening(self) -> Callable[[], Reward]:
        return lambda: as_reward("relevance:?window=5")
