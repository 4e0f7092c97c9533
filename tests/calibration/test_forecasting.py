"""What is learnt of partial scores."""

from dataclasses import replace

import numpy as np
import pytest
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


def test_what_is_left_is_paid_and_where_all_have_ended_nothing_is_learnt() -> None:
    trace = make_trace(0)
    short = replace(trace, lengths=np.full(16, 20), rewards=trace.rewards)
    found = forecasts_of([short], CHECKPOINTS)
    assert sorted(found) == [8, 16]
    assert found[8].num_left == 12
