"""Correlations against scipy and by hand, the chance to lose the best, intervals, and the front."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fakes import FakeEngine, FakeReward, in_thirds
from specrej.evaluation.correlation import (
    MEASURES,
    correlate,
    correlations,
    estimates,
    is_best_lost,
    loss_chances,
    pareto_front,
)
from specrej.evaluation.intervals import mean_of
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import Replayer
from traces import traces_of

some = settings(max_examples=100, deadline=None, derandomize=True)

numbers = st.integers(-5, 5).map(float) | st.floats(-1e6, 1e6)
PROMPTS = ["Why?", "How?", "When?", "Who?", "Where?"]


def traces(**options: Any) -> Any:
    options = {"n": 12, "max_new_tokens": 24, "memory": "1MiB", **options}
    return traces_of(PROMPTS, [4, 8, 16, 30], FakeEngine(eos=0.05), FakeReward(), **options)


# Correlation


def pairs(x: list[float], y: list[float]) -> float:
    """Kendall's tau-b by its definition."""
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i in range(len(x)) for j in range(i)]
    untied = [sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)]
    return float(sum(a * b for a, b in signs) / np.sqrt(untied[0] * untied[1]))


@given(st.integers(3, 12).flatmap(lambda n: arrays.arrays(np.float64, (2, n), elements=numbers)))
@some
def test_correlations_are_those_of_their_definitions(values: Any) -> None:
    x, y = values
    if min(np.ptp(x), np.ptp(y)) < 1e-3:
        return
    got = correlate(x, y)
    ranks = [stats.rankdata(row) for row in (x, y)]
    assert got["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    assert got["kendall"] == pytest.approx(pairs(x.tolist(), y.tolist()), abs=1e-9)


@pytest.mark.parametrize(
    ("partial", "final"),
    [
        ([], []),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5),
        ([1e6, 1e6, np.nextafter(1e6, 2e6)], [1.0, 2.0, 3.0]),
    ],
)
def test_where_there_is_no_correlation_there_is_none(
    partial: list[float], final: list[float]
) -> None:
    assert correlate(partial, final) == dict.fromkeys(MEASURES)


def test_those_that_ended_are_left_out_and_shown_beside() -> None:
    recorded = traces()
    table = correlations(recorded)
    assert [row["num_tokens"] for row in table] == [4, 8, 16, 30]
    for place, row in enumerate(table):
        live = [trace.lengths > row["num_tokens"] for trace in recorded]
        assert row["live_share"] == np.concatenate(live).mean()
        for number, trace in enumerate(recorded):
            partial, final, is_live = trace.rewards[:, place], trace.final_rewards, live[number]
            for name in MEASURES:
                assert (
                    row["unfinished"][name]["by_prompt"][number]
                    == correlate(partial[is_live], final[is_live])[name]
                )
                assert row["all"][name]["by_prompt"][number] == correlate(partial, final)[name]
    assert 0 < table[1]["live_share"] < 1
    assert table[1]["all"]["pearson"] != table[1]["unfinished"]["pearson"]
    beyond = table[3]
    assert beyond["live_share"] == 0
    assert beyond["unfinished"]["pearson"] == {
        "by_prompt": [None] * 5,
        "estimate": {"value": None, "low": None, "high": None},
    }
    assert list(beyond["all"]["kendall"]["estimate"].values()) == pytest.approx([1, 1, 1])


# The chance to lose the best


def test_the_best_is_lost_when_all_its_equals_are_rejected() -> None:
    assert is_best_lost([1.0, 2.0, 3.0, 4.0], [9.0, 1.0, 1.0, 1.0], 0.5)
    assert not is_best_lost([1.0, 2.0, 3.0, 4.0], [9.0, 9.0, 9.0, 1.0], 0.5)
    assert not is_best_lost([1.0, 2.0, 3.0, 4.0], [9.0, 1.0, 1.0, 1.0], 0.0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_the_chance_is_that_of_a_policy_with_one_decision(alpha: float) -> None:
    recorded = traces()
    chances = {
        (row["num_tokens"], row["alpha"]): row["chance"]["value"]
        for row in loss_chances(recorded, [alpha])
    }
    for point in (4, 8, 16):
        policy = ReplayPolicy(alpha=alpha, decide=f"at:{point}", n=12)
        lost = 0
        for trace in recorded:
            outcome = Replayer(trace).run(policy)
            # The policy decides once more when all have ended; here only its first decision is
            # meant.
            rejected = {index for decision in outcome.decisions[:1] for index in decision.rejected}
            left = [
                reward for index, reward in enumerate(trace.final_rewards) if index not in rejected
            ]
            lost += max(left) < trace.final_rewards.max()
        assert chances[point, alpha] == lost / len(recorded)
    assert chances[30, alpha] == 0


# Intervals


@pytest.mark.parametrize("num_prompts", [1, 2, 40])
def test_intervals_of_many_columns_are_those_of_each(num_prompts: int) -> None:
    values = np.random.default_rng(1).gamma(2, size=(num_prompts, 1203))
    together = estimates(values)
    assert len(together) == 1203
    for column in (0, 500, 700, 1202):
        assert together[column] == pytest.approx(mean_of(values[:, column]))


# The front

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15)


@given(points)
@some
def test_nobody_beats_the_front_and_it_beats_all_others(
    given_points: list[tuple[int, int]],
) -> None:
    cost, gain = zip(*given_points, strict=True)
    front = pareto_front(cost, gain)
    assert [cost[i] for i in front] == sorted({cost[i] for i in front})
    assert [gain[i] for i in front] == sorted({gain[i] for i in front})
    for index in range(len(given_points)):
        as_good = [
            i for i in range(len(given_points)) if cost[i] <= cost[index] and gain[i] >= gain[index]
        ]
        better = [
            i for i in as_good if (cost[i], gain[i]) != (cost[index], gain[index]) or i < index
        ]
        assert (index in front) == (not better)


def test_a_reward_of_few_values_makes_no_warnings() -> None:
    recorded = traces_of(
        PROMPTS, [4, 8], FakeEngine(eos=0.3), FakeReward(in_thirds), n=5, max_new_tokens=24
    )
    assert len(correlations(recorded)) == 2
