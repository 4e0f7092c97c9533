import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.rewards.combining import Scale, combiner

some = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.floats(-1e3, 1e3)
groups = st.lists(st.tuples(numbers, st.integers(1, 5)), min_size=1, max_size=6)
"""Scores of one candidate, each with a whole weight: as if a member of weight 3 were there three
times."""


def repeated(group: list[tuple[float, int]]) -> list[float]:
    return [score for score, weight in group for _ in range(weight)]


def combined(group: list[tuple[float, int]], combine: str, **options: float) -> float:
    return combiner(combine, [float(weight) for _, weight in group], **options)(
        [score for score, _ in group]
    )


@given(groups)
@some
def test_the_sum_is_weighted(group: list[tuple[float, int]]) -> None:
    assert combined(group, "sum") == pytest.approx(sum(repeated(group)), abs=1e-6)


@given(groups, st.floats(0.1, 5))
@some
def test_mean_minus_std_is_that_of_members_repeated_by_weight(
    group: list[tuple[float, int]], risk: float
) -> None:
    expected = np.mean(repeated(group)) - risk * np.std(repeated(group))
    assert combined(group, "mean_minus_std", risk=risk) == pytest.approx(expected, abs=1e-6)


@given(groups, st.data())
@some
def test_cvar_is_the_mean_of_the_worst_members_repeated_by_weight(
    group: list[tuple[float, int]], data: st.DataObject
) -> None:
    members = sorted(repeated(group))
    worst = data.draw(st.integers(1, len(members)))
    value = combined(group, "cvar", share=worst / len(members))
    assert value == pytest.approx(np.mean(members[:worst]), abs=1e-6)


@given(st.lists(numbers, min_size=1, max_size=6))
@some
def test_cvar_lies_between_the_worst_and_the_mean(scores: list[float]) -> None:
    weights = [1.0] * len(scores)
    assert combiner("worst", weights)(scores) == min(scores)
    assert combiner("cvar", weights, share=1.0)(scores) == pytest.approx(np.mean(scores), abs=1e-6)
    assert combiner("cvar", weights, share=0.5 / len(scores))(scores) == pytest.approx(
        min(scores), abs=1e-6
    )


def test_defaults_of_risk_and_share_are_one_and_a_half() -> None:
    assert combiner("mean_minus_std", [1.0, 1.0])([0.0, 2.0]) == 0.0
    assert combiner("cvar", [1.0] * 4)([4.0, 1.0, 3.0, 9.0]) == 2.0


def test_scale_keeps_what_it_found() -> None:
    scale = Scale()
    scale.fit([2.0, 4.0])
    scale.fit([100.0, 4.0])
    assert [scale.apply(5.0), scale.apply(2.0)] == [2.0, -1.0]
