"""Krippendorff's alpha against its definition and published values; which items are disputed."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.evaluation import intervals
from specrej.evaluation.ratings.agreement import alpha_of, most_disputed, variance

PUBLISHED = {
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: 4 observers
    0.849: ("123321412   ", "1233224125 3", " 3332342251 ", "12332441251 "),
    # Wikipedia, "Krippendorff's alpha": 3 coders
    0.811: ("     34121133 3", "1 213343       ", "  21344 21133 4"),
}
"""Ratings by rater, a character an item, blank where one is missing."""


def coincidence_alpha(units: Sequence[Sequence[int]]) -> Fraction | None:
    """The definition with a coincidence matrix: ordered pairs of values, each by 1 / (m - 1)."""
    matrix: dict[tuple[int, int], Fraction] = {}
    for unit in units:
        for pair in permutations(unit, 2):
            matrix[pair] = matrix.get(pair, Fraction(0)) + Fraction(1, len(unit) - 1)
    totals: dict[int, Fraction] = {}
    for (value, _), count in matrix.items():
        totals[value] = totals.get(value, Fraction(0)) + count
    number = sum(totals.values(), Fraction(0))
    observed = sum(count * (c - k) ** 2 for (c, k), count in matrix.items())
    expected = sum(totals[c] * totals[k] * (c - k) ** 2 for c in totals for k in totals)
    return 1 - (number - 1) * observed / expected if expected else None


UNITS = st.lists(st.lists(st.integers(0, 20), max_size=5), max_size=6)


@given(prompts=st.lists(UNITS, max_size=5))
def test_alpha_is_that_of_the_coincidence_matrix(prompts: list[list[list[int]]]) -> None:
    expected = coincidence_alpha([unit for units in prompts for unit in units])
    found = alpha_of(prompts)["value"]
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("value", PUBLISHED)
def test_published_values(value: float) -> None:
    raters = PUBLISHED[value]
    width = max(map(len, raters))
    columns = zip(*(rater.ljust(width) for rater in raters), strict=True)
    units = [[int(score) for score in column if score != " "] for column in columns]
    for prompts in ([units], [[unit] for unit in units]):
        found = alpha_of(prompts)["value"]
        assert found is not None
        assert round(found, 3) == value


def test_the_interval_is_of_prompts_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 80)
    rng = np.random.default_rng(3)
    prompts = [
        [[int(x) for x in rng.integers(1, 6, size=size)] for size in range(1, 4)] for _ in range(7)
    ]
    drawn = np.random.default_rng(intervals.SEED).integers(len(prompts), size=(80, len(prompts)))
    figures = [
        coincidence_alpha([unit for place in places for unit in prompts[place]]) for places in drawn
    ]
    ordered = sorted(float(figure) for figure in figures if figure is not None)
    tail = int(len(ordered) * 0.025)
    found = alpha_of(prompts)
    assert found["low"] == pytest.approx(ordered[tail])
    assert found["high"] == pytest.approx(ordered[-1 - tail])


def test_what_says_nothing_of_agreement_has_no_alpha() -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert alpha_of([]) == nothing
    assert alpha_of([[[3], [5]], [[1]]]) == nothing  # one rater an item
    assert alpha_of([[[7, 7]], [[7, 7, 7]]]) == nothing  # no variation to explain
    assert alpha_of([[[1, 1]], [[9, 9]]])["value"] == 1


@given(scores=st.lists(st.integers(0, 20), min_size=2, max_size=6))
def test_variance_is_half_the_mean_squared_difference_of_pairs(scores: list[int]) -> None:
    pairs = [Fraction((one - other) ** 2) for one, other in combinations(scores, 2)]
    assert variance(scores) == sum(pairs) / len(pairs) / 2


@given(
    items=st.dictionaries(
        st.text("abcdef", min_size=1), st.lists(st.integers(1, 10), max_size=4), max_size=30
    )
)
def test_the_disputed_are_a_fifth_and_nobody_else_is_more_so(items: dict[str, list[int]]) -> None:
    chosen = most_disputed(items)
    known = {name: float(np.var(scores, ddof=1)) for name, scores in items.items() if scores[1:]}
    assert len(chosen) == len(set(chosen)) <= max(1, len(known) // 5)
    assert all(known[name] > 0 for name in chosen)
    if len(chosen) < max(1, len(known) // 5):
        assert all(value == 0 for name, value in known.items() if name not in chosen)
    least = min((known[name] for name in chosen), default=0.0)
    assert all(known[name] <= least + 1e-9 for name in known.keys() - set(chosen))


def test_equal_disagreements_are_chosen_by_name_whatever_their_order() -> None:
    items = {"d": [3, 3, 4], "b": [1, 2, 2], "c": [9, 10, 10], "a": [5, 5], "e": [1]}
    more = {str(number): [6, 6] for number in range(7)}
    assert most_disputed({**items, **more}) == ["b", "c"]
    assert most_disputed({**more, **dict(reversed(items.items()))}) == ["b", "c"]
