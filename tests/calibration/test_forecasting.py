"""What is learnt of partial scores."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CHECKPOINTS, make_trace

from specrej.calibration.forecasting import forecasts_of


def test_it_says_what_rewards_such_candidates_end_with() -> None:
    """Partial rewards here are the final ones and a normal error, which falls with the length."""
    traces = [make_trace(number, num_candidates=64, noise=0.7) for number in range(60)]
    found = forecasts_of(traces, CHECKPOINTS)
    for length, noise in zip(CHECKPOINTS, np.linspace(0.7, 0.07, len(CHECKPOINTS)), strict=True):
        # Both normal, of variance 1 and noise ** 2: what regression to the mean gives.
        share = 1 / (1 + noise**2)
        for score in (-0.8, 0.0, 0.8):
            mean, error = found[length].of(score)
            assert mean == pytest.approx(share * score, abs=0.15)
            assert error == pytest.approx(np.sqrt(share) * noise, abs=0.12)


def test_a_higher_score_never_means_a_lower_reward() -> None:
    traces = [make_trace(number, noise=1e3) for number in range(3)]
    for forecast in forecasts_of(traces, CHECKPOINTS).values():
        assert list(forecast.finals) == sorted(forecast.finals)
        assert list(forecast.scores) == sorted(set(forecast.scores))


def test_rewards_of_two_values_make_as_many_bins() -> None:
    traces = [make_trace(number) for number in range(4)]
    flat = [
        replace(trace, rewards=np.sign(trace.rewards), final_rewards=np.sign(trace.final_rewards))
        for trace in traces
    ]
    for forecast in forecasts_of(flat, CHECKPOINTS).values():
        assert set(forecast.scores) >= {-1.0, 1.0} or len(forecast.scores) < 4
        assert list(forecast.scores) == sorted(set(forecast.scores))


@given(
    st.lists(st.sampled_from([0.1, 0.3, 0.7, 0.9, 1e-9]), min_size=1, max_size=120),
    st.sampled_from([1.0, 1e-12, 1e12]),
)
@settings(deadline=None, derandomize=True)
def test_equal_scores_are_one_however_they_round(scores: list[float], scale: float) -> None:
    """The mean of equal scores may be a bit above or below them."""
    n = len(scores)
    column = scale * np.array(scores)
    trace = make_trace(0, num_candidates=n)
    live = replace(
        trace, lengths=np.full(n, 100), rewards=np.tile(column[:, None], (1, len(CHECKPOINTS)))
    )
    found = forecasts_of([live], CHECKPOINTS)[16]
    gaps = np.diff(found.scores)
    assert (gaps > 1e-10 * np.ptp(column)).all()
    assert min(found.scores) >= column.min()
    assert max(found.scores) <= column.max()
    mean, error = found.of(float(column.max()) * 2)
    assert np.isfinite([mean, error]).all()


def test_what_is_left_is_paid_and_where_all_have_ended_nothing_is_learnt() -> None:
    trace = make_trace(0)
    short = replace(trace, lengths=np.full(16, 20), rewards=trace.rewards)
    found = forecasts_of([short], CHECKPOINTS)
    assert sorted(found) == [8, 16]
    assert found[8].num_left == 12
