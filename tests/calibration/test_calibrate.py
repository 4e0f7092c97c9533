"""What is promised holds on prompts that were not seen, and what cannot be promised is said."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CHECKPOINTS, make_trace, with_settings

from specrej.calibration.calibrate import MOST_REGRET, calibrate
from specrej.calibration.forecasting import forecasts_of
from specrej.calibration.path import lay_path
from specrej.calibration.replays import Replays, alike, expected_best
from specrej.errors import UsageError
from specrej.search.calibrated import CalibratedPolicy


def test_best_of_n_costs_all_and_loses_nothing() -> None:
    replays = Replays([make_trace(number) for number in range(3)])
    judged = replays.judge(CalibratedPolicy(n=16))
    assert judged.cost.tolist() == replays.baseline.tolist()
    assert judged.regret.tolist() == [0.0, 0.0, 0.0]


def test_regret_is_in_spreads_of_the_prompts_rewards() -> None:
    trace = make_trace(1)
    replays = Replays([trace])
    first = replays.judge(CalibratedPolicy(n=1))
    lost = trace.final_rewards.max() - trace.final_rewards[0]
    assert first.regret[0] == pytest.approx(lost / trace.final_rewards.std())


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9), st.data())
@settings(deadline=None, derandomize=True)
def test_best_of_n_is_the_mean_over_all_choices(rewards: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    best = [max(chosen) for chosen in combinations(rewards, n)]
    assert expected_best(np.array(rewards, dtype=float), n) == pytest.approx(np.mean(best))


def test_the_best_of_many_is_no_matter_of_large_numbers() -> None:
    rewards = np.arange(4000.0)
    assert expected_best(rewards, 4000) == 3999
    assert expected_best(rewards, 1999) == pytest.approx(1999 * 4001 / 2000 - 1)


def test_a_smaller_best_of_n_costs_its_share_and_may_be_beaten() -> None:
    traces = [make_trace(number) for number in range(6)]
    whole, quarter = Replays(traces), Replays(traces, against=4)
    prompts = np.array([trace.flops.prefill(40) for trace in traces if trace.flops is not None])
    assert quarter.baseline - prompts == pytest.approx((whole.baseline - prompts) / 4)
    judged = quarter.judge(CalibratedPolicy(n=16))
    assert judged.cost.tolist() == whole.baseline.tolist()
    assert (judged.regret < 0).all()
    for wrong in (0, 17):
        with pytest.raises(UsageError, match=f"Best-of-{wrong}: 16 candidates were recorded"):
            Replays(traces, against=wrong)


def test_a_path_grows_bold_and_begins_where_nothing_is_lost() -> None:
    replays = Replays([make_trace(number) for number in range(12)])
    path = path_of(12)
    costs = [replays.judge(policy).cost.sum() for policy in path]
    regrets = [replays.judge(policy).regret.mean() for policy in path]
    assert len(path) > 3
    assert regrets[0] == 0
    assert costs == sorted(costs, reverse=True)
    assert regrets == sorted(regrets)


def test_all_that_the_best_candidate_stands_behind_is_best_of_n() -> None:
    """Partial rewards that say nothing: whoever rejects loses, and the path begins with all."""
    traces = [make_trace(number, noise=1e6) for number in range(20)]
    first, second, *_ = lay_path(Replays(traces), forecasts_of(traces, CHECKPOINTS))
    assert first.forecasts == ()
    assert Replays(traces).judge(second).regret.mean() > 0


def test_the_promise_holds_on_new_prompts_as_often_as_it_says() -> None:
    """Ten calibrations, each tried on 60 prompts of its own: at most one in ten may fail."""
    failures, num_promised = 0, 0
    for number in range(10):
        seeds = range(1000 * number, 1000 * number + 40)
        made = calibrate([make_trace(seed) for seed in seeds], target=0.6, confidence=0.9)
        if made.chosen is None:
            continue
        num_promised += 1
        new = Replays([make_trace(seed) for seed in range(seeds.stop, seeds.stop + 60)])
        seen = np.minimum(new.judge(made.chosen.policy).regret, MOST_REGRET).mean()
        failures += seen > 0.6
    assert num_promised > 7
    assert failures <= 1


def test_too_few_prompts_promise_nothing_and_say_how_many_are_needed() -> None:
    made = calibrate([make_trace(number) for number in range(8)], target=0.05, confidence=0.95)
    assert made.chosen is None
    assert made.needed > 100
    assert all(trial.bound > 0.05 for trial in made.trials)


def test_the_same_seed_divides_prompts_alike() -> None:
    traces = [make_trace(number) for number in range(12)]
    one, same, other = (calibrate(traces, target=1, confidence=0.9, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.trials != other.trials


@pytest.mark.parametrize(
    ("target", "confidence", "words"),
    [
        (0, 0.9, "target regret must be at least 0.001"),
        (1e-9, 0.9, "target regret must be at least 0.001"),
        (4.0, 0.9, "below 4"),
        (float("nan"), 0.9, "target"),
        (0.1, 1, "confidence must be above 0 and below 1, got 1"),
        (0.1, 0, "confidence"),
    ],
)
def test_values_out_of_range_are_refused(target: float, confidence: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        calibrate([make_trace(n) for n in range(4)], target=target, confidence=confidence)


def test_too_few_prompts_at_all_are_refused() -> None:
    with pytest.raises(UsageError, match="3 prompts are too few to calibrate on, expected 4"):
        calibrate([make_trace(n) for n in range(3)], target=0.1, confidence=0.9)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "another"}, "'0' has model 'made-up', '1' has 'another'"),
        ({"reward": "another"}, "reward 'noise'"),
        ({"temperature": 0.5}, "temperature 1.0"),
        ({"max_new_tokens": 256}, "max_new_tokens 128"),
    ],
)
def test_traces_of_two_kinds_are_refused(changed: dict[str, object], words: str) -> None:
    traces = [make_trace(0), with_settings(make_trace(1), **changed)]
    with pytest.raises(UsageError, match=words):
        alike(traces)


def test_traces_that_were_scored_nowhere_or_elsewhere_are_refused() -> None:
    late = [
        replace(with_settings(make_trace(n), max_new_tokens=8), checkpoints=(8,)) for n in range(4)
    ]
    with pytest.raises(UsageError, match="no reward before the limit of 8 tokens, only at 8"):
        calibrate(late, target=0.1, confidence=0.9)
    other = replace(make_trace(1), checkpoints=(8, 16, 32, 65))
    with pytest.raises(UsageError, match=r"'1' has \[8, 16, 32, 65\]"):
        alike([make_trace(0), other])


def path_of(num_prompts: int) -> list[CalibratedPolicy]:
    traces = [make_trace(number) for number in range(num_prompts)]
    return lay_path(Replays(traces), forecasts_of(traces, CHECKPOINTS))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e155, 1e300])
def test_regret_does_not_depend_on_the_size_of_rewards(scale: float) -> None:
    traces = [make_trace(number) for number in range(6)]
    scaled = [
        replace(one, rewards=scale * one.rewards, final_rewards=scale * one.final_rewards)
        for one in traces
    ]
    policy = CalibratedPolicy(n=4)
    regrets = Replays(traces).judge(policy).regret
    assert regrets.max() > 0
    assert Replays(scaled).judge(policy).regret == pytest.approx(regrets)


@pytest.mark.parametrize("against", [None, 1, 7])
@pytest.mark.parametrize("reward", [0.1, 0.7, -1e6 / 3])
def test_where_all_are_worth_the_same_nothing_is_lost(reward: float, against: int | None) -> None:
    trace = make_trace(1, num_candidates=48)
    flat = replace(
        trace, rewards=np.full_like(trace.rewards, reward), final_rewards=np.full(48, reward)
    )
    for n in (1, 48):
        assert Replays([flat] * 2, against).judge(CalibratedPolicy(n=n)).regret.tolist() == [0, 0]
    made = calibrate([flat] * 8, target=3.9, confidence=0.5)
    assert made.chosen is not None


def test_rewards_that_are_no_numbers_are_refused() -> None:
    finals = make_trace(1).final_rewards.copy()
    finals[3] = np.nan
    with pytest.raises(UsageError, match="trace of '1' holds rewards that are not finite"):
        alike([make_trace(0), replace(make_trace(1), final_rewards=finals)])


@pytest.mark.parametrize(("target", "confidence"), [(3.9, 0.5), (2.0, 0.9), (0.5, 0.95)])
def test_so_many_prompts_as_are_needed_are_enough(target: float, confidence: float) -> None:
    """Where none has a regret, and not one fewer."""
    needed = calibrate(
        [make_trace(n) for n in range(4)], target=target, confidence=confidence
    ).needed
    flat = replace(make_trace(0), rewards=np.zeros((16, 4)), final_rewards=np.zeros(16))
    for num_prompts, is_enough in ((needed, True), (needed - 1, False)):
        if num_prompts >= 4:
            made = calibrate([flat] * num_prompts, target=target, confidence=confidence)
            assert (made.chosen is not None) == is_enough


def test_what_is_said_to_be_possible_is_possible() -> None:
    for start in (0, 100, 200):
        traces = [make_trace(number) for number in range(start, start + 30)]
        could = calibrate(traces, target=0.02, confidence=0.95).trials[0].bound
        assert calibrate(traces, target=could * 1.05, confidence=0.95).chosen is not None


def test_whoever_may_begin_with_more_promises_more_cheaply() -> None:
    traces = [make_trace(number) for number in range(80)]
    eight, sixteen = (calibrate(traces, against=n, target=0.5, confidence=0.9) for n in (8, None))
    assert eight.chosen is not None
    assert eight.n == 8
    assert eight.chosen.policy.promise["against"] == "best_of_n:8"
    assert eight.chosen.policy.promise["regrets_counted"] == [-1.0, 4.0]
    assert sixteen.trials[0].regret[0] == 0
    assert eight.trials[0].regret[0] < 0
