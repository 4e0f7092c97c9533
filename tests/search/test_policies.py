import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.search.policies import at, every, everyone, fraction, never, quantile, top
from specrej.search.resolving import policy_of
from specrej.settings import Settings
from specrej.types import Rule, Standing

some = settings(max_examples=150, deadline=None, derandomize=True)
alphas = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])
scores_of_any_kind = st.lists(
    st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30
)
scores_of_few_values = st.lists(st.integers(0, 2).map(float), min_size=1, max_size=30)


def kept_by(rule: Rule, scores: Sequence[float]) -> list[bool]:
    """Who stays of a batch that is all live."""
    return rule(Standing(8, scores, [True] * len(scores)))


def moments(schedule: object, until: int) -> list[int]:
    """Lengths at which a schedule decides."""
    assert callable(schedule)
    decided, last = [], 0
    for length in range(until):
        if schedule(length, last):
            decided.append(length)
            last = length
    return decided


def test_every_decides_after_each_so_many_tokens() -> None:
    assert moments(every(3), 11) == [3, 6, 9]


def test_every_counts_from_the_last_decision_whoever_asked_for_it() -> None:
    assert not every(3)(6, 4)
    assert every(3)(7, 4)


def test_at_decides_at_the_lengths_it_was_given_once_each() -> None:
    assert moments(at((4, 2)), 11) == [2, 4]
    assert not at((4,))(4, 4)


def test_never_decides_never() -> None:
    assert moments(never, 11) == []


def test_everyone_keeps_everyone() -> None:
    assert kept_by(everyone, [1.0, -1.0]) == [True, True]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), alphas)
@some
def test_the_quantile_is_that_of_numpy(scores: list[float], alpha: float) -> None:
    assert quantile(scores, alpha) == pytest.approx(np.quantile(scores, alpha), rel=1e-9, abs=1e-6)


@given(
    st.lists(st.integers(-(10**6), 10**6).map(float), min_size=1, max_size=30, unique=True), alphas
)
@some
def test_distinct_scores_stay_if_they_are_at_or_above_the_quantile(
    scores: list[float], alpha: float
) -> None:
    cut = np.quantile(scores, alpha)
    assert kept_by(fraction(alpha), scores) == [score >= cut for score in scores]


@given(scores_of_any_kind | scores_of_few_values, alphas)
@some
def test_a_fraction_keeps_the_best_and_rejects_its_share(scores: list[float], alpha: float) -> None:
    kept = kept_by(fraction(alpha), scores)
    assert_keeps_the_best(scores, kept)
    assert kept.count(False) >= math.floor(alpha * len(scores))
    assert any(kept)


@given(scores_of_few_values, alphas)
@some
def test_ties_at_the_cut_stay_unless_too_few_would_go(scores: list[float], alpha: float) -> None:
    below = sum(score < np.quantile(scores, alpha) for score in scores)
    kept = kept_by(fraction(alpha), scores)
    assert kept.count(False) == max(below, math.floor(alpha * len(scores)))


@given(scores_of_any_kind | scores_of_few_values)
@some
def test_alpha_zero_keeps_everyone(scores: list[float]) -> None:
    assert kept_by(fraction(0.0), scores) == [True] * len(scores)


@given(scores_of_any_kind | scores_of_few_values, st.integers(1, 40))
@some
def test_top_keeps_the_k_best(scores: list[float], k: int) -> None:
    kept = kept_by(top(k), scores)
    assert_keeps_the_best(scores, kept)
    assert sum(kept) == min(k, len(scores))


@pytest.mark.parametrize(
    ("rule", "kept"), [(fraction(0.5), [0, 1]), (fraction(0.3), [0, 1, 2]), (top(1), [0])]
)
def test_of_equals_the_first_stay(rule: Rule, kept: list[int]) -> None:
    assert [i for i, is_kept in enumerate(kept_by(rule, [1.0] * 4)) if is_kept] == kept


def test_scores_at_the_ends_of_the_numbers_leave_somebody() -> None:
    assert kept_by(fraction(0.5), [1e308, -1e308]) == [True, False]
    assert any(kept_by(fraction(0.3), [-1.7e308, 1.7e308, 1.7e308]))


def test_a_policy_has_the_rule_and_the_schedule_that_were_asked_for() -> None:
    scores = [1.0, 4.0, 3.0, 2.0]
    policy = policy_of(Settings(alpha=0.75, decide="every:2", min_tokens=8))
    assert kept_by(policy.keep, scores) == [False, True, False, False]
    assert moments(policy.when, 7) == [2, 4, 6]
    two = policy_of(Settings(alpha=0.75, keep=2, decide="at: 5, 2", min_tokens=8))
    assert kept_by(two.keep, scores) == [False, True, True, False]
    assert moments(two.when, 7) == [2, 5]
    assert (
        moments(policy_of(Settings(alpha=0.5, keep=None, decide="budget", min_tokens=8)).when, 7)
        == []
    )


def assert_keeps_the_best(scores: Sequence[float], kept: Sequence[bool]) -> None:
    """No rejected score is above a kept one; of equals the earlier is kept."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    flags = [kept[i] for i in order]
    assert len(kept) == len(scores)
    assert flags == sorted(flags, reverse=True)
