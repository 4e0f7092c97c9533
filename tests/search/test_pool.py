"""Many searches in one memory: never more than there is, nobody starves, and every result as if
alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward, by_hash, in_thirds
from specrej.api import prepare, unobserved
from specrej.errors import BudgetError
from specrej.search.pool import Pool
from specrej.search.scheduler import run
from specrej.search.search import Search
from specrej.settings import Settings
from specrej.types import Candidate, Decision, Result, Usage

PROMPTS = [
    "Why?",
    "How so, and since when?",
    "é",
    "Who?",
    "Where to?",
    "What for?",
    "Why not?",
    "When?",
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "min_tokens": 5, "n": 8, "memory": 8000}


def essence(result: object) -> tuple[list[Candidate], list[Decision], int, Usage]:
    """All of a result that depends neither on the clock nor on how much memory was taken at a
    time."""
    assert isinstance(result, Result)
    usage = replace(result.usage, prefill_s=0, decode_s=0, reward_s=0, other_s=0, peak_kv_bytes=0)
    decisions = [replace(decision, kv_bytes=0, kv_bytes_after=0) for decision in result.decisions]
    return list(result.candidates), decisions, result.best.index, usage


def run_all(
    engine: FakeEngine,
    each: list[Settings],
    pool: Pool,
    observe: Callable[[Search], None] = unobserved,
) -> dict[int, object]:
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(len(each))]
    makers = [
        partial(prepare, engine, FakeReward(), prompt, one)
        for prompt, one in zip(prompts, each, strict=True)
    ]
    return dict(run(engine, makers, pool=pool, in_flight=99, observe=observe))


@given(
    total=st.integers(4000, 40_000),
    rate=st.sampled_from([by_hash, in_thirds]),
    options=st.lists(
        st.fixed_dictionaries(
            {
                "algorithm": st.sampled_from(["best_of_n", "speculative_rejection"]),
                "n": st.sampled_from([1, 3, 8, 20, "auto"]),
                "seed": st.integers(0, 1000),
                "memory": st.integers(1600, 4000),
                "max_new_tokens": st.integers(1, 30),
                "alpha": st.sampled_from([0.0, 0.5, 0.9]),
                "decide": st.sampled_from(["budget", "every:4", "at:3,9"]),
            }
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_runs_side_by_side_fits_and_ends_as_if_alone(
    total: int, rate: Callable[[str], float], options: list[dict[str, Any]]
) -> None:
    engine, reward = (
        FakeEngine(total_bytes=total),
        FakeReward(rate),
    )  # the engine asserts that all stay within it
    each = [Settings(**{**OPTIONS, **one}) for one in options]
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(len(each))]
    makers = [
        partial(prepare, engine, reward, prompt, one)
        for prompt, one in zip(prompts, each, strict=True)
    ]
    pool = Pool(total)
    together = dict(run(engine, makers, pool=pool, in_flight=99, observe=unobserved))
    assert sorted(together) == list(range(len(each)))
    for number, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
        alone = specrej.generate(
            prompt, model=FakeEngine(), reward=FakeReward(rate), **one.to_dict()
        )
        assert essence(together[number]) == essence(alone)
    assert engine.num_prefills == len(each), "nothing is prefilled twice"
    assert 0 < pool.mean_share <= 1
    assert pool.peak_bytes <= total
    assert not engine.groups


def test_the_memory_that_one_prompt_gives_up_is_the_next_ones() -> None:
    """Far more prompts run side by side than full-length budgets would fit, and memory is in use
    most of the time."""
    total = 16_000
    in_flight, shares = list[int](), list[float]()
    engine = FakeEngine(eos=0.02, total_bytes=total)
    each = [Settings(**OPTIONS, decide="every:6")] * 40
    pool = Pool(total)

    def watch(_: Search) -> None:
        in_flight.append(len(engine.groups))
        shares.append(pool.reserved_bytes / total)

    run_all(engine, each, pool, watch)
    one = FakeEngine().kv_bytes(5, 8, 24)
    assert max(in_flight) > 2 * (total // one)
    assert fmean(shares) > 0.8
    alone = FakeEngine(eos=0.02)
    for number, one_of in enumerate(each):
        specrej.generate(
            PROMPTS[number % len(PROMPTS)], model=alone, reward=FakeReward(), **one_of.to_dict()
        )
    assert engine.num_steps < alone.num_steps / 3
    assert engine.num_drawn == alone.num_drawn


def test_who_began_first_never_waits() -> None:
    engine = FakeEngine(eos=0.02)
    steps: dict[int, list[int]] = {}

    def observe(search: Search) -> None:
        if not search.decisions or search.usage.num_steps > search.decisions[-1].num_tokens:
            steps.setdefault(search.handle, []).append(engine.num_steps)

    run_all(engine, [Settings(**OPTIONS, decide="every:6")] * 12, Pool(9000), observe)
    waits = {handle: [b - a for a, b in pairwise(seen)] for handle, seen in steps.items()}
    assert max(waits[0]) == 1, "the oldest takes every step"
    assert any(max(gaps) > 1 for gaps in waits.values()), "memory was tight: somebody waited"


def test_a_search_alone_may_take_all_its_budget_at_once() -> None:
    engine = FakeEngine(eos=0.0)
    result = run_all(engine, [Settings(**{**OPTIONS, "n": "auto"})], Pool(8000))[0]
    alone = specrej.generate(
        PROMPTS[0], model=FakeEngine(eos=0.0), reward=FakeReward(), **{**OPTIONS, "n": "auto"}
    )
    assert isinstance(result, Result)
    assert result.decisions == alone.decisions, "to the byte"
    assert result.usage.peak_kv_bytes == alone.usage.peak_kv_bytes


def test_a_prompt_whose_own_memory_exceeds_that_of_all_fails_and_the_others_go_on() -> None:
    each = [Settings(**OPTIONS), Settings(**{**OPTIONS, "memory": 9000}), Settings(**OPTIONS)]
    outcomes = run_all(FakeEngine(), each, Pool(8000))
    assert isinstance(outcomes[1], BudgetError)
    assert isinstance(outcomes[0], Result)
    assert isinstance(outcomes[2], Result)
    assert "total_memory" in str(outcomes[1].hint)


@pytest.mark.parametrize("total", [8000, 30_000])
def test_results_do_not_depend_on_how_much_is_shared(total: int) -> None:
    each = [Settings(**OPTIONS, decide="every:5", seed=seed) for seed in range(6)]
    first, second = (run_all(FakeEngine(), each, Pool(size)) for size in (total, 10**9))
    assert [essence(first[number]) for number in range(6)] == [
        essence(second[number]) for number in range(6)
    ]
