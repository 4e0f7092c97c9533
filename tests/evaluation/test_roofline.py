"""The cost model against a count by hand, step by step and candidate by candidate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeEngine
from specrej.errors import BudgetError, UsageError
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import ReplayedDecision, Replayer
from specrej.evaluation.roofline import (
    Machine,
    ModelShape,
    Plant,
    Reading,
    RewardPass,
    Work,
    extended,
    steps_of,
    stretched,
    work_of,
)
from specrej.flops import AttentionFlops, ModelFlops
from specrej.search.calibrated import CalibratedPolicy
from specrej.search.gains import Forecast
from specrej.types import Standing
from traces import trace_of

FLOPS = ModelFlops(linear=1000.0, head=200.0, attention=(AttentionFlops(None, 8.0),), chunk=512)
MODEL = ModelShape(name="m", flops=FLOPS, bytes_per_weight=2, resident_bytes=1300, kv_bytes=32)
MACHINE = Machine(
    name="box",
    bandwidth=100.0,
    kv_bandwidth=50.0,
    flops=300.0,
    memory_bytes=100_000,
    overhead=0.5,
)
some = settings(max_examples=100, deadline=None, derandomize=True)
waves = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(np.array)


@given(waves)
@some
def test_steps_are_those_of_a_decoder(wave: np.ndarray) -> None:
    rows, own = steps_of(wave)
    for step, (num_live, num_tokens) in enumerate(zip(rows, own, strict=True), 1):
        assert (num_live, num_tokens) == ((wave > step).sum(), step)
    assert rows.sum() == (wave - 1).sum()


@given(waves, st.integers(1, 40))
@some
def test_a_bill_is_the_sum_of_its_steps(wave: np.ndarray, prompt: int) -> None:
    bill = Plant(machine=MACHINE, model=MODEL).bill(prompt, Work([wave, wave], []))
    seconds = 0.0
    for step in range(1, max(wave)):
        live = [length for length in wave if length > step]
        seconds += 0.5 + max(1200 / 100, len(live) * 1200 / 300)
        seconds += sum(max((prompt + step) * 32 / 50, (prompt + step) * 8 / 300) for _ in live)
    assert bill.decode == pytest.approx(2 * seconds)
    assert bill.flops == pytest.approx(FLOPS.prefill(prompt) + 2 * FLOPS.decode(prompt, wave))
    assert (bill.tokens, bill.num_waves) == (2 * wave.sum(), 2)
    assert bill.seconds == pytest.approx(bill.prefill + bill.decode)


def test_where_nothing_overlaps_seconds_add_up_and_rows_spill() -> None:
    machine = Machine(
        name="cpu",
        bandwidth=100.0,
        kv_bandwidth=50.0,
        flops=300.0,
        memory_bytes=10_000,
        overhead=0.0,
        is_overlapping=False,
        spill_rows=2,
        spill_seconds=0.25,
    )
    seconds = MODEL.step_seconds(machine, [1, 4], [10, 40])
    assert seconds.tolist() == pytest.approx([12 + 4 + 6.4, 12 + 16 + 25.6 + 0.5])


def test_a_full_batch_costs_the_same_packed() -> None:
    """All of one length whose KV fills the memory in the mean: no other prompt finds room."""
    wave = np.full(8, 11)  # ten steps, with 1 to 10 tokens each
    machine = Machine(
        name="box",
        bandwidth=100.0,
        kv_bandwidth=50.0,
        flops=300.0,
        memory_bytes=1300 + int(8 * 5.5 * 32),
        overhead=0.5,
    )
    bill = Plant(machine=machine, model=MODEL).bill(7, Work([wave], []))
    assert bill.packed == pytest.approx(bill.seconds)


def test_a_reward_reads_prompt_and_answers_anew_or_what_is_new() -> None:
    scorings = [
        RewardPass(np.array([0, 0]), np.array([4, 4])),
        RewardPass(np.array([4]), np.array([10])),
    ]
    work = Work([np.array([10, 4])], scorings)
    silent = Plant(machine=MACHINE, model=MODEL).bill(6, work)
    for is_incremental, reads in (
        (False, [(2, 20, 110), (1, 16, 136)]),
        (True, [(2, 6 + 8, 21 + 2 * (55 - 21)), (1, 6, 136 - 55)]),
    ):
        judge = Reading(
            model=MODEL, machine=MACHINE, is_incremental=is_incremental, text_seconds=0.1
        )
        bill = Plant(machine=MACHINE, model=MODEL, reward=judge).bill(6, work)
        flops = sum(1000 * tokens + 200 * texts + 8 * pairs for texts, tokens, pairs in reads)
        assert bill.flops - silent.flops == pytest.approx(flops)
        seconds = sum(
            0.5 + max(12, (1000 * tokens + 200 * texts) / 300) + 8 * pairs / 300 + 0.1 * texts
            for texts, tokens, pairs in reads
        )
        assert bill.reward == pytest.approx(seconds)


def test_an_incremental_reward_holds_kv_of_its_own() -> None:
    anew = Plant(machine=MACHINE, model=MODEL, reward=Reading(model=MODEL, machine=MACHINE))
    beside = Plant(
        machine=MACHINE,
        model=MODEL,
        reward=Reading(model=MODEL, machine=MACHINE, is_incremental=True),
    )
    assert (anew.kv_bytes, beside.kv_bytes) == (32, 64)
    assert beside.at_end == anew
    assert Plant(machine=MACHINE, model=MODEL).at_end.reward is None
    assert anew.room_bytes == beside.room_bytes == 100_000 - 2600


def test_weights_that_do_not_fit_are_refused() -> None:
    small = Machine(
        name="watch", bandwidth=1.0, kv_bandwidth=1.0, flops=1.0, memory_bytes=1300, overhead=0.0
    )
    with pytest.raises(BudgetError, match="watch holds"):
        _ = Plant(machine=small, model=MODEL).room_bytes


def test_waves_are_told_apart_though_the_first_ended_by_a_rejection() -> None:
    decisions = [
        ReplayedDecision("schedule", 4, (0, 1), (0, 1)),
        ReplayedDecision("schedule", 4, (2, 3), (3,)),
        ReplayedDecision("complete", 9, (2,), ()),
    ]
    work = work_of([4, 4, 9, 4], decisions)
    assert [wave.tolist() for wave in work.waves] == [[4, 4], [9, 4]]
    assert [scoring.before.tolist() for scoring in work.scorings] == [[0, 0], [0, 0], [4]]
    assert [scoring.now.tolist() for scoring in work.scorings] == [[4, 4], [4, 4], [9]]


@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.9]), st.integers(2, 8))
@some
def test_a_replay_on_an_extended_trace_does_all_of_its_work(
    n: int, scale: int, alpha: float, fitting: int
) -> None:
    trace = trace_of("abc", [4, 8], FakeEngine(eos=0.05), n=8, max_new_tokens=24, seed=3)
    larger = extended(trace, n, scale, bytes_per_token=10)
    room = larger.layout.peak_bytes(larger.num_prompt_tokens, fitting, 24 * scale - 1)
    policy = ReplayPolicy(alpha=alpha, decide=f"at:{4 * scale}", n=n, memory=room, min_tokens=4)
    run = Replayer(larger).run(policy)
    work = work_of(run.num_tokens, run.decisions)
    assert np.concatenate(work.waves).tolist() == list(run.num_tokens)
    assert len(work.waves) == (-(-n // fitting) if alpha == 0 else len(work.waves))
    assert sum(scoring.now.sum() for scoring in work.scorings) == (
        run.num_scored_tokens
        - larger.num_prompt_tokens * sum(len(scoring.now) for scoring in work.scorings)
    )
    if alpha == 0:
        assert list(run.num_tokens) == [scale * int(trace.lengths[place % 8]) for place in range(n)]


def test_an_extended_trace_refuses_numbers_that_mean_nothing() -> None:
    trace = trace_of("abc", [4], n=2, max_new_tokens=6)
    for n, scale in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="above 0"):
            extended(trace, n, scale, bytes_per_token=10)


def test_a_stretched_policy_decides_alike_at_other_lengths() -> None:
    forecast = Forecast(16, (-1.0, 1.0), (-1.0, 1.0), (1.0, 0.5), 48.0)
    policy = CalibratedPolicy(n=64, forecasts=(forecast,), price=2.0**-9)
    larger = stretched(policy, 640, 4)
    assert (larger.n, larger.lengths) == (640, (64,))
    scores = np.random.default_rng(0).normal(size=30).tolist()
    here, there = (Standing(length, scores, [True] * 30) for length in (16, 64))
    assert larger.to_policy().keep(there) == policy.to_policy().keep(here)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None, "fast"])
def test_a_machine_of_numbers_that_cannot_be_is_refused(value: Any) -> None:
    for name in ("bandwidth", "flops", "overhead"):
        if (name, value) != ("overhead", 0):
            with pytest.raises(UsageError, match=f"{name} must be a finite number"):
                replace(MACHINE, **{name: value})
