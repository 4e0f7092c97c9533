"""Rewards that compare answers in pairs, against brute force."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from specrej.errors import RewardError, UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import is_relative
from specrej.rewards.pairwise import FunctionComparer, PairwiseReward
from specrej.rewards.ranking import SCHEMES, Pair
from specrej.rewards.together import score_together
from specrej.types import Candidate, Message

PROMPT: list[Message] = [{"role": "user", "content": "Which?"}]
LETTERS = "abcdefghijkl"
probabilities = st.integers(0, 64).map(lambda number: number / 64)
tables = st.integers(1, len(LETTERS)).flatmap(
    lambda num: st.lists(
        st.lists(probabilities, min_size=num, max_size=num), min_size=num, max_size=num
    )
)
schemes = st.sampled_from(sorted(SCHEMES))


class TableComparer:
    """Knows how likely each letter is better than each other one, first of the two shown."""

    name = "table"
    flops_per_token: float | None = None

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        self.table = table
        self.batches: list[list[tuple[str, str]]] = []

    def compare(self, pairs: Sequence[Pair]) -> tuple[list[float], list[int]]:
        self.batches.append([(pair.first.text, pair.second.text) for pair in pairs])
        assert all(pair.messages == PROMPT for pair in pairs)
        return [
            self.table[LETTERS.index(pair.first.text)][LETTERS.index(pair.second.text)]
            for pair in pairs
        ], [3] * len(pairs)

    def close(self) -> None:
        self.table = []


def letters(num: int) -> list[Candidate]:
    return [Candidate(index, text=LETTERS[index]) for index in range(num)]


def scores_of(
    table: Sequence[Sequence[float]], scheme: str, candidates: Sequence[Candidate]
) -> list[float]:
    return PairwiseReward(TableComparer(table), scheme=scheme).open(PROMPT).score(candidates)


def both_orders(table: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """`[k, k]`: how likely each is better than each other, whichever stands first."""
    given = np.array(table)
    averaged: NDArray[np.float64] = 0.5 + (given - given.T) / 2
    return averaged


@given(tables)
def test_round_robin_is_the_mean_probability(table: list[list[float]]) -> None:
    num = len(table)
    averaged = both_orders(table)
    expected = [np.delete(averaged[i], i).mean() if num > 1 else 0.5 for i in range(num)]
    found = scores_of(table, "round_robin", letters(num))
    assert found == pytest.approx(expected)
    assert math.fsum(found) == pytest.approx(num / 2)


@given(tables)
def test_knockout_counts_rounds(table: list[list[float]]) -> None:
    averaged, left = both_orders(table), list(range(len(table)))
    came_through = np.zeros(len(table))
    while len(left) > 1:
        winners = [left[-1]] if len(left) % 2 else []
        for place in range(0, len(left) - 1, 2):
            one, other = left[place : place + 2]
            # The alphabet says which probability is computed, the other is its complement.
            winners.append(one if averaged[one, other] >= 0.5 else other)
        left = winners
        came_through[left] += 1
    found = scores_of(table, "knockout", letters(len(table)))
    assert found == came_through.tolist()
    assert found.count(max(found)) == 1  # a champion
    assert max(found) == math.ceil(math.log2(len(table)))


@given(tables, schemes, st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing(
    table: list[list[float]], scheme: str, random: Random
) -> None:
    candidates = letters(len(table))
    expected = dict(enumerate(scores_of(table, scheme, candidates)))
    random.shuffle(candidates)
    found = scores_of(table, scheme, candidates)
    assert [expected[candidate.index] for candidate in candidates] == found


@given(tables)
def test_who_wins_and_who_loses_are_mirrored(table: list[list[float]]) -> None:
    """Antisymmetry: with all preferences turned round, so are the scores."""
    mirrored = (1 - np.array(table)).tolist()
    candidates = letters(len(table))
    found = scores_of(table, "round_robin", candidates)
    assert [1 - score for score in scores_of(mirrored, "round_robin", candidates)] == pytest.approx(
        found
    )


def test_a_place_that_is_preferred_decides_nothing() -> None:
    always_first = [[0.9] * 4] * 4
    assert scores_of(always_first, "round_robin", letters(4)) == pytest.approx([0.5] * 4)
    # Of an even pair, who has the lower index goes on.
    assert scores_of(always_first, "knockout", letters(4)) == [2, 0, 1, 0]


def test_what_did_not_change_is_asked_once_and_each_order_counts() -> None:
    comparer = TableComparer([[0.5] * 12] * 12)
    session = PairwiseReward(comparer).open(PROMPT)
    three = letters(3)
    session.score(three)
    assert sorted(comparer.batches[-1]) == sorted(
        [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")]
    )
    assert (session.num_comparisons, session.num_tokens) == (6, 18)
    three[2].text = "d"
    session.score(three)
    assert sorted(comparer.batches[-1]) == [("a", "d"), ("b", "d"), ("d", "a"), ("d", "b")]
    session.score(three[::-1])
    assert len(comparer.batches) == 2
    three[2].text = "a"  # equal ones are equal, without asking
    assert session.score(three) == [0.5, 0.5, 0.5]
    assert (session.num_comparisons, session.num_tokens) == (10, 30)


def test_many_prompts_are_one_batch_a_round_and_as_alone() -> None:
    table = np.random.default_rng(3).random((12, 12)).tolist()
    for scheme, num_rounds in (("round_robin", 1), ("knockout", 3)):
        comparer = TableComparer(table)
        reward = PairwiseReward(comparer, scheme=scheme)
        batches = [letters(5), letters(12)[7:], letters(1), letters(2)]
        sessions = [reward.open(PROMPT) for _ in batches]
        found = score_together(reward, list(zip(sessions, batches, strict=True)))
        assert len(comparer.batches) == num_rounds
        assert found == [scores_of(table, scheme, batch) for batch in batches]
        pairs = [10, 10, 0, 1] if scheme == "round_robin" else [4, 4, 0, 1]
        assert [session.num_comparisons for session in sessions] == [2 * num for num in pairs]


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_prompt_that_fails_costs_another_no_comparison_again(scheme: str) -> None:
    """Those beside it are asked alone then, and know what they knew."""

    def better(prompt: str, a: str, b: str) -> float:
        if "bad" in (a, b):
            raise ValueError("no")
        return float(a < b)

    def decide(reward: PairwiseReward, beside: Sequence[str]) -> int:
        good, other = reward.open(PROMPT), reward.open(PROMPT)
        for num in (4, 5):
            texts = [Candidate(place, text=text) for place, text in enumerate(beside[:num])]
            scores, _ = score_together(reward, [(good, letters(num)), (other, texts)])
            assert not isinstance(scores, BaseException)
        return good.num_comparisons

    reward = PairwiseReward(FunctionComparer(better), scheme=scheme)
    expected = decide(reward, "vwxyz")
    assert decide(reward, ["v", "w", "x", "y", "bad"]) == expected
    assert decide(reward, ["v", "w", "bad", "y", "z"]) == expected


def test_a_function_is_named_in_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "longer.py").write_text(
        "def better(prompt, a, b):\n    return float(len(a) > len(b)) if a != b else 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = as_reward("pairwise:longer:better")
    assert (reward.name, reward.flops_per_token) == ("pairwise:longer:better", None)
    assert is_relative(reward)
    texts = [Candidate(4, text="aa"), Candidate(1, text="a"), Candidate(2, text="aaa")]
    assert list(reward.open(PROMPT).score(texts)) == [0.5, 0.0, 1.0]
    named = as_reward("pairwise:longer:better?scheme=knockout")
    assert as_reward(named.name).name == named.name == "pairwise:longer:better?scheme=knockout"
    del sys.modules["longer"]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("pairwise", UsageError, "needs a model or a function"),
        ("pairwise:math:hypot?scheme=swiss", UnknownNameError, "scheme of a pairwise reward"),
        ("pairwise:math:hypot?batch_size=2", UsageError, "takes no batch_size"),
        ("pairwise:math:nothing", UnknownNameError, "nothing"),
    ],
)
def test_specs_that_are_none(spec: str, error: type[UsageError], says: str) -> None:
    with pytest.raises(error, match=says):
        as_reward(spec)


@pytest.mark.parametrize("given", [1.5, -0.1, float("nan"), "much", None])
def test_what_is_no_probability_is_told(given: object) -> None:
    reward = PairwiseReward(FunctionComparer(lambda prompt, a, b: given, "mine"))
    with pytest.raises(RewardError, match="'mine' failed to compare candidates 0 and 1") as caught:
        reward.open(PROMPT).score(letters(2))
    assert "from 0 to 1" in str(caught.value.hint)


def test_a_function_that_raises_is_told() -> None:
    def fails(prompt: str, a: str, b: str) -> float:
        raise KeyError(prompt)

    with pytest.raises(RewardError, match=r"'fails' failed to compare .* KeyError: 'Which\?'"):
        PairwiseReward(FunctionComparer(fails)).open(PROMPT).score(letters(2))
