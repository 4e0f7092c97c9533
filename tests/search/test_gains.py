"""Who is expected to add more than the tokens are worth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.search.gains import Forecast, worth
from specrej.types import Standing

LINE = Forecast(
    num_tokens=16, scores=(-2.0, 0.0, 2.0), finals=(-1.0, 0.0, 1.0), errors=(1.5, 1.0, 0.5),
    num_left=48.0,
)  # fmt: skip
FINITE = st.floats(-1e3, 1e3, allow_nan=False)


def kept(scores: list[float], price: float, best: float | None = None, num_tokens: int = 16,
         live: list[bool] | None = None) -> list[int]:  # fmt: skip
    standing = Standing(num_tokens, scores, live or [True] * len(scores), best)
    return np.flatnonzero(worth([LINE], price)(standing)).tolist()


@pytest.mark.parametrize(
    ("score", "mean", "error"),
    [(0, 0, 1), (1, 0.5, 0.75), (-2, -1, 1.5), (-9, -1, 1.5), (2, 1, 0.5), (4, 2, 0.5)],
)
def test_between_scores_a_forecast_is_linear(score: float, mean: float, error: float) -> None:
    assert LINE.of(score) == pytest.approx((mean, error))


def test_one_score_forecasts_one_reward() -> None:
    flat = Forecast(8, (0.0,), (3.0,), (1.0,), 10.0)
    assert [flat.of(score) for score in (-1.0, 0.0, 5.0)] == [(3.0, 1.0)] * 3


def brute_force(ends: list[tuple[float, float]], best: float | None, least: float) -> int:
    """How many stay by the definition, over 200,000 draws."""
    random = np.random.default_rng(1)
    means, errors = np.array(ends).T
    draws = means + errors * random.normal(size=(200_000, len(ends)))
    before = np.full(len(draws), -np.inf if best is None else best)
    num_kept = 0
    for place, column in enumerate(draws.T):
        raised = np.maximum(before, column)
        if (place == 0 and best is None) or (raised - before).mean() > least:
            num_kept = place + 1
        before = raised
    return num_kept


@pytest.mark.parametrize("best", [None, -0.5, 1.0])
@pytest.mark.parametrize("price", [3e-4, 1e-3, 3e-3])
def test_the_gains_are_those_of_many_draws(price: float, best: float | None) -> None:
    scores = sorted(np.random.default_rng(0).normal(size=12).tolist(), reverse=True)
    ends = [LINE.of(score) for score in scores]
    means, errors = np.array(ends).T
    spread = math.sqrt(means.var() + (errors**2).mean())
    expected = brute_force(ends, best, price * 48 * spread)
    # Clark's maximum of many is not exact: one more or one less.
    assert abs(len(kept(scores, price, best)) - expected) <= 1


@given(st.lists(FINITE, min_size=1, max_size=20), st.floats(0, 0.1), st.none() | FINITE)
@settings(deadline=None, derandomize=True)
def test_those_who_stay_are_the_best_by_forecast(
    scores: list[float], price: float, best: float | None
) -> None:
    stay = kept(scores, price, best)
    if best is None:
        assert stay
    means = [LINE.of(score)[0] for score in scores]
    goes = [means[place] for place in range(len(scores)) if place not in stay]
    assert all(means[place] >= max(goes, default=-math.inf) for place in stay)


@given(st.lists(FINITE, min_size=2, max_size=12), st.floats(0, 0.05), st.floats(1, 10))
@settings(deadline=None, derandomize=True)
def test_a_higher_price_keeps_no_more(scores: list[float], price: float, factor: float) -> None:
    assert set(kept(scores, price * factor)) <= set(kept(scores, price))


def test_a_close_field_keeps_many_and_a_plain_leader_goes_on_alone() -> None:
    assert len(kept([0.0] * 10, 1e-3)) > 3
    assert kept([0.0] * 9 + [9.0], 1e-3) == [9]


def test_beyond_the_reach_of_all_others_a_complete_answer_ends_the_run() -> None:
    assert kept([0.0, 0.1, 0.2], 1e-4, best=20.0) == []
    live = [True, True, False]
    assert kept([0.0, 0.1, 20.0], 1e-4, live=live) == [2]
    assert kept([0.0, 0.1, -20.0], 1e-4, live=live) == [0, 1, 2]


@pytest.mark.parametrize("size", [1e100, 1e160, 1e300])
def test_a_score_far_beyond_all_others_stays(size: float) -> None:
    assert kept([1.0, 2.0, size], 1e-3, best=0.0) == [2]
    assert kept([-size, 2.0], 1e-3, best=0.0)[-1] == 1


def test_where_memory_decides_the_forecast_before_serves() -> None:
    scores = [-1.0, 0.0, 1.0]
    for length in (1, 16, 40):
        assert kept(scores, 2e-3, num_tokens=length) == kept(scores, 2e-3)


@pytest.mark.parametrize("score", [1e200, -1e200, 1.7e308, 0.0])
def test_somebody_goes_on_whatever_the_rewards_are(score: float) -> None:
    wild = Forecast(16, (-1e300, 1e300), (-1e300, 1e300), (0.0, 1e300), 48.0)
    assert any(worth([wild], 1.0)(Standing(16, [score] * 3, [True] * 3)))
    assert kept([score] * 3, 1e9) == [0]
