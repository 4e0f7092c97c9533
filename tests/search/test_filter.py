"""Rewards that give minus infinity: such candidates are rejected at once, and all else holds for
the others."""

import json
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_algorithms import Case, Rate, best_of_n, cases, fate, some
from test_search import ALGORITHMS, generate, rows

import specrej
from fakes import FakeEngine, FakeReward, by_hash, in_thirds, watched
from specrej.errors import RewardError
from specrej.search.search import Search
from specrej.types import Result


def only(passes: Callable[[str], bool]) -> FakeReward:
    """Length of the texts that pass; the others are rejected at once."""

    def length_if_passed(text: str) -> float:
        return float(len(text)) if passes(text) else -math.inf

    return FakeReward(length_if_passed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_whose_filter_lets_nobody_pass_fails_and_says_how_many(algorithm: str) -> None:
    engine, reward = FakeEngine(), only(lambda text: False)
    with pytest.raises(
        RewardError, match="no candidate is left: 6 of 6 did not pass the filter of the reward '"
    ) as caught:
        generate(engine, reward, algorithm=algorithm, n=6, memory=rows(3))
    assert str(caught.value).endswith("'length_if_passed'")
    assert "loosen the filter" in str(caught.value.hint)
    assert engine.groups == {}
    assert reward.sessions[0].is_closed
    assert sorted(reward.sessions[0].dropped) == list(range(6))


def test_a_run_in_which_decisions_left_only_those_that_fail_says_so() -> None:
    reward = only(lambda text: len(text) < 15)
    with pytest.raises(
        RewardError, match=r"(?m)no candidate is left: 1 of 4 .*, decisions rejected the others$"
    ):
        generate(FakeEngine(eos=0.0), reward, n=4, keep=1, decide="at:5")


def test_a_prompt_whose_filter_lets_nobody_pass_does_not_stop_the_others() -> None:
    engine = FakeEngine()
    reward = only(lambda text: len(text) < 10)
    options: dict[str, Any] = {"n": 1, "max_new_tokens": 24, "min_tokens": 6}
    prompts = [f"Why {number}?" for number in range(12)]
    outcomes = dict(
        specrej.generate_batch(prompts, model=engine, reward=reward, in_flight=3, **options)
    )
    for number, prompt in enumerate(prompts):
        text = watched(prompt, model=FakeEngine(), reward=FakeReward(), **options).text
        outcome = outcomes[number]
        assert isinstance(outcome, RewardError) if len(text) >= 10 else outcome.text == text  # type: ignore[union-attr]
    assert {type(outcome) for outcome in outcomes.values()} == {Result, RewardError}
    assert engine.groups == {}


def test_filtered_candidates_are_a_decision_of_their_own_before_that_on_the_others() -> None:
    result = generate(
        FakeEngine(eos=0.0),
        only(lambda text: text[:1] != "a"),
        n=12,
        memory=rows(12),
        decide="at:8",
    )
    first, second = result.decisions[:2]
    failed = {c.index for c in result.candidates if c.text[:1] == "a"}
    assert (first.cause, second.cause) == ("filter", "schedule")
    assert set(first.scored) == set(first.rejected) == failed != set()
    assert first.cut is None
    assert set(second.scored) == set(range(12)) - failed
    assert len(second.rejected) == len(second.scored) // 2
    assert first.kv_bytes_after == second.kv_bytes < first.kv_bytes
    assert all(result.candidates[index].rewards == {} for index in failed)
    assert all(next(iter(result.candidates[index].rewards)) == 1 for index in second.scored)
    json.dumps(result.to_dict(), allow_nan=False)


def test_candidates_that_ended_are_filtered_while_the_others_go_on() -> None:
    result = generate(
        FakeEngine(),
        only(lambda text: len(text) != 3),
        n=40,
        memory=rows(60),
        alpha=0.0,
        decide="at:8",
    )
    filtered = result.decisions[0]
    assert filtered.cause == "filter"
    assert {result.candidates[index].finish_reason for index in filtered.rejected} == {"eos"}
    assert all(
        candidate.state == "complete" or len(candidate.text) == 3 for candidate in result.candidates
    )


# The promises, and the books, at random


def stays_short(text: str) -> float:
    """A score of three values; partial answers can fail, and those that grew beyond 12
    characters."""
    return -math.inf if len(text) > 12 or text.startswith("b") else in_thirds(text)


def ends_well(text: str) -> float:
    """About half fail at any decision, whatever they were before."""
    return by_hash(text) if zlib.crc32(b"!" + text.encode()) % 2 else -math.inf


def rarely_fails(text: str) -> float:
    """About one of ten fails at each decision."""
    return -math.inf if zlib.crc32(b"?" + text.encode()) % 10 == 0 else by_hash(text)


filters = st.sampled_from([stays_short, ends_well, rarely_fails])


class Filtered(NamedTuple):
    """A run with a filter: its outcome, and what engine and reward saw."""

    outcome: Result | RewardError
    engine: FakeEngine
    reward: FakeReward
    search: Search


def run_filtered(case: Case, rate: Rate, **options: Any) -> Filtered:
    engine, reward = FakeEngine(eos=case.eos), FakeReward(rate)
    searches: list[Search] = []

    def observe(search: Search) -> None:
        searches[:] = [search]
        memory = search.memory()
        assert memory.in_use <= memory.peak <= search.budget_bytes
        assert all(
            candidate.reward is None or math.isfinite(candidate.reward)
            for candidate in search.candidates
        )
        assert memory.next_step <= search.budget_bytes or search.due(lambda length, last: False)

    outcome: Result | RewardError
    try:
        outcome = watched(
            case.prompt, model=engine, reward=reward, observe=observe, **{**case.options, **options}
        )
    except RewardError as error:
        outcome = error
    return Filtered(outcome, engine, reward, searches[0])


@given(cases(), filters)
@settings(some, max_examples=100)
def test_with_a_filter_the_winner_is_the_best_that_passed_and_without_one_the_run_fails(
    case: Case, rate: Rate
) -> None:
    outcome, engine, _, search = run_filtered(case, rate)
    left = [candidate for candidate in search.candidates if candidate.state != "rejected"]
    filtered = {index for d in search.decisions if d.cause == "filter" for index in d.rejected}
    assert all(
        candidate.state == "complete" and rate(candidate.text) > -math.inf for candidate in left
    )
    assert all(rate(search.candidates[index].text) == -math.inf for index in filtered)
    if isinstance(outcome, RewardError):
        assert left == []
        assert f"{len(filtered)} of {len(search.candidates)} did not pass" in str(outcome)
    else:
        assert outcome.best is max(left, key=lambda c: (rate(c.text), -c.index))
        assert outcome.reward == rate(outcome.text)
    assert engine.groups == {}


@given(cases(), filters)
@settings(some, max_examples=100)
def test_with_a_filter_the_decisions_add_up(case: Case, rate: Rate) -> None:
    _, engine, reward, search = run_filtered(case, rate)
    session = reward.sessions[0]
    rejected = [index for decision in search.decisions for index in decision.rejected]
    assert sorted(rejected) == sorted(c.index for c in search.candidates if c.state == "rejected")
    assert session.dropped == rejected
    assert sum(map(len, session.scored)) == sum(
        len(decision.scored) for decision in search.decisions
    )
    assert (
        engine.num_drawn
        == sum(len(c.token_ids) for c in search.candidates)
        == search.usage.generated_tokens
    )
    assert engine.num_read == sum(len(c.token_ids) for c in search.candidates)
    for number, decision in enumerate(search.decisions):
        scored = [search.candidates[index] for index in decision.scored]
        assert scored
        assert all(
            len(search.candidates[index].token_ids) <= decision.num_tokens
            for index in decision.rejected
        )
        if decision.cause == "filter":
            assert decision.scored == decision.rejected
            assert decision.cut is None
            assert all(number not in candidate.rewards for candidate in scored)
        else:
            stayed = [c.rewards[number] for c in scored if c.index not in decision.rejected]
            assert decision.cut == (min(stayed) if decision.rejected and stayed else None)
    for candidate in search.candidates:
        scored_at = [
            n
            for n, d in enumerate(search.decisions)
            if candidate.index in d.scored and d.cause != "filter"
        ]
        assert scored_at == list(candidate.rewards)


@given(cases(), filters)
@some
def test_with_a_filter_p1_and_p2_hold(case: Case, rate: Rate) -> None:
    full = best_of_n(case._replace(rate=by_hash)).candidates
    for candidate in run_filtered(case, rate).search.candidates:
        num_tokens = len(candidate.token_ids)
        assert candidate.token_ids == full[candidate.index].token_ids[:num_tokens]
        if candidate.state == "complete":
            assert fate(candidate) == fate(full[candidate.index])
    at_once = run_filtered(case, rate, algorithm="best_of_n", memory="1GiB")
    waves = run_filtered(case, rate, algorithm="best_of_n")
    assert [fate(c) for c in waves.search.candidates] == [
        fate(c) for c in at_once.search.candidates
    ]
    assert [c.state for c in waves.search.candidates] == [
        c.state for c in at_once.search.candidates
    ]
    if isinstance(at_once.outcome, Result):
        assert isinstance(waves.outcome, Result)
        assert waves.outcome.best.index == at_once.outcome.best.index
        passing = [c for c in full if rate(c.text) > -math.inf]
        assert (
            at_once.outcome.best.index == max(passing, key=lambda c: (rate(c.text), -c.index)).index
        )


@given(cases(), filters)
@some
def test_with_alpha_zero_only_the_filter_rejects(case: Case, rate: Rate) -> None:
    search = run_filtered(case, rate, alpha=0.0, keep=None).search
    assert all(
        decision.rejected == () for decision in search.decisions if decision.cause != "filter"
    )


def test_filtered_cases_reach_what_they_are_about() -> None:
    """Nobody left and somebody left, live and complete ones filtered, everybody of a batch, in
    waves."""
    seen: set[str] = set()

    @given(cases(), filters)
    @settings(some, max_examples=100)
    def look(case: Case, rate: Rate) -> None:
        outcome, _, reward, search = run_filtered(case, rate)
        seen.add(type(outcome).__name__)
        for decision in search.decisions:
            if decision.cause == "filter":
                ended = {
                    search.candidates[index].finish_reason is not None
                    for index in decision.rejected
                }
                seen.update("complete ones" if has_ended else "live ones" for has_ended in ended)
                everybody = list(decision.rejected) in reward.sessions[0].scored
                seen.add("everybody" if everybody else "some")
                seen.update(
                    {"a later wave"}
                    if decision.rejected[0] and 0 not in search.decisions[0].scored
                    else ()
                )
                if everybody and isinstance(outcome, Result):
                    seen.add("everybody of a wave, and another has the answer")

    look()
    assert seen >= {"Result", "RewardError", "complete ones", "live ones", "everybody", "some"}
    assert "everybody of a wave, and another has the answer" in seen
