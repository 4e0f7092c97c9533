"""The promises of the design, P1 to P7, on an engine whose tokens are exact, and Algorithm 1
replayed by other means.

What a run is made of is drawn at random: prompt, seed, memory, alpha or k, schedule, reward (with
ties and without). The engine itself asserts P5 and P7 at every step: see `fakes`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import LETTERS, FakeEngine, FakeReward, alike, by_hash, in_thirds, text_of, watched
from specrej.search.search import Search
from specrej.types import Candidate, Decision, Result, Usage

Rate = Callable[[str], float]

PROMPT = "Why?"
LENGTH = 24

some = settings(max_examples=40, deadline=None, derandomize=True)


class Case(NamedTuple):
    """A run of Speculative Rejection, drawn at random."""

    prompt: str
    options: dict[str, Any]
    eos: float
    rate: Rate


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompt = draw(st.text(min_size=1, max_size=12).filter(str.strip))
    engine = FakeEngine()
    num_prompt = len(engine.encode(prompt))
    length = draw(st.integers(1, LENGTH))
    least, most = (engine.kv_bytes(num_prompt, rows, max(length, 2)) for rows in (1, 6))
    options = {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "n": draw(st.integers(1, 24)),
        "max_new_tokens": length,
        "memory": draw(st.integers(least, most)),
        "min_tokens": draw(st.integers(1, LENGTH)),
        "alpha": draw(
            st.sampled_from([0.001, 0.1, 0.25, 0.5, 0.9]) | st.floats(0, 1, exclude_max=True)
        ),
        "keep": draw(st.none() | st.integers(1, 12)),
        "decide": draw(st.sampled_from(["budget", "every:1", "every:5", "at:3,11", "at:7"])),
    }
    return Case(
        prompt,
        options,
        draw(st.sampled_from([0.0, 0.03, 0.2])),
        draw(st.sampled_from([by_hash, in_thirds, alike])),
    )


def reject(case: Case, engine: FakeEngine | None = None, **options: Any) -> Result:
    engine = engine or FakeEngine(eos=case.eos)
    return watched(
        case.prompt, model=engine, reward=FakeReward(case.rate), **{**case.options, **options}
    )


def best_of_n(case: Case, **options: Any) -> Result:
    """All candidates of the case to their end, in one wave."""
    return reject(case, algorithm="best_of_n", memory="1GiB", **options)


def fate(candidate: Candidate) -> tuple[list[int], list[float], str | None, str]:
    return candidate.token_ids, candidate.logprobs, candidate.finish_reason, candidate.text


# P1


@given(cases())
@some
def test_p1_with_alpha_zero_the_candidates_are_those_of_best_of_n(case: Case) -> None:
    result = reject(case, alpha=0.0, keep=None)
    expected = best_of_n(case)
    assert [fate(candidate) for candidate in result.candidates] == [
        fate(c) for c in expected.candidates
    ]
    assert result.best.index == expected.best.index
    assert not any(decision.rejected for decision in result.decisions)


@given(cases())
@some
def test_p1_best_of_n_is_the_same_in_waves_and_at_once(case: Case) -> None:
    waves, at_once = reject(case, algorithm="best_of_n"), best_of_n(case)
    assert [fate(candidate) for candidate in waves.candidates] == [
        fate(c) for c in at_once.candidates
    ]
    assert waves.best == replace(at_once.best, rewards=waves.best.rewards)
    assert len(at_once.decisions) == 1


def test_p1_memory_forces_waves() -> None:
    memory = FakeEngine().kv_bytes(len(PROMPT) + 1, 3, LENGTH)
    case = Case(PROMPT, {"n": 8, "max_new_tokens": LENGTH, "memory": memory}, 0.0, by_hash)
    assert [d.scored for d in reject(case, algorithm="best_of_n").decisions] == [
        (0, 1, 2),
        (3, 4, 5),
        (6, 7),
    ]


# P2


@given(cases())
@some
def test_p2_a_rejected_candidate_is_a_prefix_of_the_one_best_of_n_finishes_and_the_others_are_equal(
    case: Case,
) -> None:
    for candidate, full in zip(reject(case).candidates, best_of_n(case).candidates, strict=True):
        num_tokens = len(candidate.token_ids)
        assert candidate.token_ids == full.token_ids[:num_tokens]
        assert candidate.logprobs == full.logprobs[:num_tokens]
        if candidate.state == "complete":
            assert fate(candidate) == fate(full)
        assert candidate.text == text_of(candidate.token_ids)


@given(cases(), st.integers(1, 24))
@some
def test_p2_a_candidate_does_not_depend_on_their_number(case: Case, n: int) -> None:
    few, many = best_of_n(case, n=n), best_of_n(case)
    for one, other in zip(few.candidates, many.candidates, strict=False):
        assert fate(one) == fate(other)


# P3


@given(cases())
@some
def test_p3_a_decision_for_memory_frees_what_the_next_step_needs(case: Case) -> None:
    decided: list[Decision] = []

    def observe(search: Search) -> None:
        if search.decisions[len(decided) :]:
            decided.extend(search.decisions[len(decided) :])
            assert search.memory().next_step <= search.budget_bytes

    result = reject(case, observe=observe)
    assert tuple(decided) == result.decisions
    for decision in result.decisions:
        if decision.cause == "budget":
            assert decision.rejected
            assert decision.kv_bytes_after < decision.kv_bytes


@pytest.mark.parametrize("rate", [by_hash, in_thirds, alike])
@pytest.mark.parametrize("alpha", [1e-9, 0.01, 0.5, 0.999])
def test_p3_no_reward_and_no_alpha_stops_the_progress(rate: Rate, alpha: float) -> None:
    memory = FakeEngine().kv_bytes(len(PROMPT) + 1, 2, 64)
    options = {"n": "auto", "alpha": alpha, "max_new_tokens": 64, "memory": memory, "min_tokens": 3}
    result = reject(Case(PROMPT, options, 0.0, rate))
    budget = [decision for decision in result.decisions if decision.cause == "budget"]
    assert len(result.candidates) > 50
    assert [decision.num_tokens for decision in budget] == sorted(
        {decision.num_tokens for decision in budget}
    )
    assert len(result.best.token_ids) == 64


# P4


@given(cases())
@some
def test_p4_the_winner_is_complete_never_rejected_and_the_best_of_those(case: Case) -> None:
    result = reject(case)
    complete = [candidate for candidate in result.candidates if candidate.state == "complete"]
    assert result.best in complete
    assert result.is_complete
    assert {candidate.state for candidate in result.candidates} <= {"complete", "rejected"}
    assert all(candidate.finish_reason for candidate in complete)
    assert result.best is max(complete, key=lambda c: (c.reward or 0.0, -c.index))
    assert result.reward == case.rate(result.text)
    rejected = {index for decision in result.decisions for index in decision.rejected}
    assert rejected == {
        candidate.index for candidate in result.candidates if candidate.state == "rejected"
    }


@given(cases())
@some
def test_p4_a_run_that_is_interrupted_has_an_answer_at_any_moment_that_was_not_rejected(
    case: Case,
) -> None:
    moments: list[Result] = []

    def observe(search: Search) -> None:
        best = search.result().best
        assert best.state != "rejected"
        complete = [candidate for candidate in search.candidates if candidate.state == "complete"]
        assert best in complete or not complete
        moments.append(search.result())

    reject(case, observe=observe)
    assert [moment.is_complete for moment in moments] == [False] * (len(moments) - 1) + [True]


# P5


@given(cases())
@some
def test_p5_memory_is_under_the_budget_at_every_step(case: Case) -> None:
    budget = case.options["memory"]

    def observe(search: Search) -> None:
        memory = search.memory()
        assert memory.in_use <= memory.peak <= budget
        assert search.usage.peak_kv_bytes <= budget

    engine = FakeEngine(eos=case.eos)
    result = reject(case, engine, observe=observe)
    assert engine.peaks == [result.usage.peak_kv_bytes]
    assert result.settings["memory_bytes"] == budget
    assert all(d.kv_bytes_after <= d.kv_bytes <= budget for d in result.decisions)


# P6


@given(cases())
@some
def test_p6_usage_adds_up(case: Case) -> None:
    engine, reward, begun = FakeEngine(eos=case.eos), FakeReward(case.rate), time.perf_counter()
    seen: list[Usage] = []
    result = watched(
        case.prompt,
        model=engine,
        reward=reward,
        observe=lambda s: seen.append(replace(s.usage)),
        **case.options,
    )
    wall_s, usage = time.perf_counter() - begun, result.usage
    assert (
        usage.generated_tokens
        == sum(len(c.token_ids) for c in result.candidates)
        == engine.num_drawn
    )
    assert usage.reward_tokens == reward.sessions[0].num_tokens
    assert usage.prompt_tokens == len(engine.encode(case.prompt))
    assert usage.num_steps == engine.num_steps
    assert usage.peak_kv_bytes == engine.peaks[0]
    for moment in (*seen, usage):
        assert min(moment.prefill_s, moment.decode_s, moment.reward_s, moment.other_s) >= 0
    parts = usage.prefill_s + usage.decode_s + usage.reward_s + usage.other_s
    assert usage.total_s == pytest.approx(parts)
    assert 0 < usage.total_s <= wall_s


def test_p6_seconds_are_booked_where_they_are_spent() -> None:
    def slow(text: str) -> float:
        time.sleep(0.1)
        return 0.0

    usage = reject(Case(PROMPT, {"n": 4, "max_new_tokens": 4}, 0.0, slow)).usage
    assert usage.reward_s >= 4 * 0.1
    assert usage.other_s < 4 * 0.1
    assert usage.decode_s < 4 * 0.1


# P7


@given(cases())
@some
def test_p7_a_prompt_is_prefilled_once_and_each_token_is_read_once(case: Case) -> None:
    engine = FakeEngine(eos=case.eos)
    result = reject(case, engine)
    assert engine.num_prefills == 1
    assert engine.num_drawn == sum(len(candidate.token_ids) for candidate in result.candidates)
    assert engine.num_read == sum(len(c.token_ids) for c in result.candidates)


@given(cases())
@some
def test_p7_a_candidate_is_scored_once_after_its_end_and_never_after_its_rejection(
    case: Case,
) -> None:
    result = reject(case)
    for candidate in result.candidates:
        scored = [d for d in result.decisions if candidate.index in d.scored]
        assert sum(d.num_tokens >= len(candidate.token_ids) for d in scored) == 1
        assert [result.decisions.index(d) for d in scored] == list(candidate.rewards)


# Algorithm 1 by other means


class Replayed(NamedTuple):
    cause: str
    num_tokens: int
    scored: list[int]
    rejected: list[int]


def replay(case: Case, answers: list[list[int]]) -> tuple[list[Replayed], int]:
    """Decisions and winner of Algorithm 1 (design.md), from answers that Best-of-N finished with
    memory to spare.

    Beside the text of the algorithm: scores that tie at the cut fall, latest first, until a share
    alpha is rejected, and the worst of those that go on fall until the next step fits.
    """
    engine, options = FakeEngine(), case.options
    num_prompt = len(engine.encode(case.prompt))

    def fits(num: int, length: int) -> bool:
        return engine.kv_bytes(num_prompt, num, max(length, 2)) <= int(options["memory"])

    def is_moment(length: int, last: int) -> bool:
        return (
            length - last == lengths[0] if kind == "every" else length > last and length in lengths
        )

    kind, _, words = options["decide"].partition(":")
    lengths = [int(word) for word in words.split(",") if word]
    first = min(lengths, default=options["min_tokens"])
    if options["alpha"] == 0 and options["keep"] is None:
        first = options["max_new_tokens"]
    size = max(num for num in range(1, 5_000) if fits(num, min(first, options["max_new_tokens"])))
    decisions: list[Replayed] = []
    finished: dict[int, float] = {}
    for begin in range(0, len(answers), size):
        batch, length, last = list(range(len(answers)))[begin : begin + size], 0, 0
        while batch:
            live = [i for i in batch if len(answers[i]) > length]
            if live and fits(len(live), length + 1) and not is_moment(length, last):
                length += 1
                continue
            cause = (
                "complete" if not live else "schedule" if fits(len(live), length + 1) else "budget"
            )
            scores = {i: case.rate(text_of(answers[i][:length])) for i in batch}
            worst_first = sorted(batch, key=lambda i: (scores[i], -i))
            if options["keep"] is not None:
                rejected = set(worst_first[: max(len(batch) - options["keep"], 0)])
            else:
                cut = np.quantile(list(scores.values()), options["alpha"])
                rejected = {i for i in batch if scores[i] < cut}
                rejected |= set(worst_first[: int(options["alpha"] * len(batch))])
            going_on = [i for i in worst_first if i in live and i not in rejected]
            while going_on and not fits(len(going_on), length + 1):
                rejected.add(going_on.pop(0))
            decisions.append(
                Replayed(
                    cause, max(len(answers[i][:length]) for i in batch), batch, sorted(rejected)
                )
            )
            finished |= {i: scores[i] for i in batch if i not in rejected and i not in live}
            batch, last = sorted(going_on), length
    return decisions, max(finished, key=lambda i: (finished[i], -i))


@given(cases())
@settings(some, max_examples=100)
def test_algorithm_1_replayed_from_a_trace_decides_the_same_and_has_the_same_winner(
    case: Case,
) -> None:
    result = reject(case)
    decisions, winner = replay(
        case, [candidate.token_ids for candidate in best_of_n(case).candidates]
    )
    given = [
        Replayed(d.cause, d.num_tokens, list(d.scored), list(d.rejected)) for d in result.decisions
    ]
    assert given == decisions
    assert result.best.index == winner
    for number, decision in enumerate(result.decisions):
        stayed = [
            result.candidates[i].rewards[number]
            for i in decision.scored
            if i not in decision.rejected
        ]
        assert decision.cut == (min(stayed) if decision.rejected and stayed else None)


def test_cases_reach_what_the_promises_are_about() -> None:
    """Decisions of every cause, rejected and complete candidates in one batch, and more than one
    wave."""
    seen: set[str] = set()

    @given(cases())
    @some
    def look(case: Case) -> None:
        result = reject(case)
        seen.update(decision.cause for decision in result.decisions)
        reasons = {candidate.finish_reason for candidate in result.candidates}
        seen.update(reason for reason in reasons if reason)
        first = [decision for decision in result.decisions if 0 in decision.scored]
        if len(first[0].scored) < len(result.candidates):
            seen.add("waves")
        if (
            any(c.state == "rejected" and c.finish_reason for c in result.candidates)
            and None in reasons
        ):
            seen.add("complete and unfinished ones rejected")
        if any(LETTERS[-1] == candidate.token_ids[-1] for candidate in result.candidates):
            seen.add("half a character")

    look()
    wanted = {"budget", "schedule", "complete", "eos", "length", "waves", "half a character"}
    assert seen == wanted | {"complete and unfinished ones rejected"}
