"""Speculative Rejection that uses freed memory again, against a simulation that knows nothing of
searches: lists of tokens, written on one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import EOS, FakeEngine, FakeReward, alike, by_hash, in_thirds, next_token, text_of
from fakes import watched as run
from specrej.engines.base import Memory
from specrej.engines.streams import uniforms
from specrej.search.calibrated import CalibratedPolicy
from specrej.search.search import Search
from specrej.types import Decision, Result

some = settings(max_examples=80, deadline=None, derandomize=True)
WAYS = ["forks", "fresh"]


class Case(NamedTuple):
    """A run, drawn at random."""

    prompt: str
    options: dict[str, Any]
    eos: float
    rate: Callable[[str], float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompt = draw(st.text(min_size=1, max_size=8).filter(str.strip))
    engine, length = FakeEngine(), draw(st.integers(1, 30))
    num_prompt = len(engine.encode(prompt))
    least, most = (engine.kv_bytes(num_prompt, rows, max(length, 2)) for rows in (1, 6))
    options = {
        "refill": draw(st.sampled_from(WAYS)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "n": draw(st.integers(1, 20)),
        "max_new_tokens": length,
        "memory": draw(st.integers(least, most)),
        "min_tokens": draw(st.integers(1, 8)),
        "alpha": draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])),
        "decide": draw(st.sampled_from(["budget", "every:1", "every:5", "at:3,11", "at:7"])),
    }
    return Case(
        prompt,
        options,
        draw(st.sampled_from([0.0, 0.03, 0.2])),
        draw(st.sampled_from([by_hash, in_thirds, alike])),
    )


def searched(case: Case, engine: FakeEngine | None = None, **options: Any) -> Result:
    engine = engine or FakeEngine(eos=case.eos)
    reward = FakeReward(case.rate)
    return run(case.prompt, model=engine, reward=reward, **{**case.options, **options})


@dataclass
class Sheet:
    """A candidate of the simulation."""

    index: int
    token_ids: list[int]
    parent: int | None = None
    state: str = "live"


class Simulation:
    """Algorithm 1 with lists of tokens, and what begins in the place of the rejected."""

    def __init__(self, case: Case) -> None:
        self.case, self.options = case, case.options
        self.prompt_ids = FakeEngine().encode(case.prompt)
        kind, _, words = self.options["decide"].partition(":")
        self.kind, self.lengths = kind, [int(word) for word in words.split(",") if word]
        self.limit: int = self.options["max_new_tokens"]
        first = min(self.lengths, default=self.options["min_tokens"])
        self.ahead = first if self.options["alpha"] else self.limit
        self.sheets: list[Sheet] = []
        self.decisions: list[tuple[str, int, list[int], list[int]]] = []
        self.num_drawn = 0
        left = self.options["n"]
        while left:
            wave = min(left, self.fitting(self.ahead))
            left -= wave
            self.run_wave(wave)

    def fitting(self, length: int) -> int:
        def fits(num: int) -> bool:
            size = FakeEngine().kv_bytes(len(self.prompt_ids), num, max(min(length, self.limit), 2))
            return size <= int(self.options["memory"])

        return max(num for num in range(200) if fits(num))

    def begin(self, parents: list[Sheet | None]) -> list[Sheet]:
        for parent in parents:
            ids = [] if parent is None else list(parent.token_ids)
            index = None if parent is None else parent.index
            self.sheets.append(Sheet(len(self.sheets), ids, index))
        return self.sheets[len(self.sheets) - len(parents) :]

    def write(self, sheet: Sheet) -> None:
        place = len(sheet.token_ids)
        (number,) = uniforms(self.options["seed"], [sheet.index], place).tolist()
        token = next_token(self.prompt_ids, sheet.token_ids, number, self.case.eos)
        sheet.token_ids.append(token)
        self.num_drawn += 1
        if token == EOS or place + 1 == self.limit:
            sheet.state = "complete"

    def wait(self, batch: list[Sheet], last: int) -> tuple[str, int]:
        """Tokens until a decision is due, and why it is; and what the schedule counts from."""
        has_written = False
        while live := [one for one in batch if one.state == "live"]:
            longest = max(len(one.token_ids) for one in live)
            if self.fitting(longest + 1) < len(live):
                return "budget", last
            if has_written:
                last = min(last, longest)
                every = self.kind == "every" and longest - last >= self.lengths[0]
                if every or (self.kind == "at" and longest > last and longest in self.lengths):
                    return "schedule", last
            for one in live:
                self.write(one)
            has_written = True
        return "complete", last

    def run_wave(self, n: int) -> None:
        first = batch = self.begin([None] * n)
        last = refilled_at = 0
        while batch:
            cause, last = self.wait(batch, last)
            last = max(len(one.token_ids) for one in batch)
            rejected = self.rejected(batch)
            self.decisions.append(
                (cause, last, [one.index for one in batch], [one.index for one in rejected])
            )
            for one in rejected:
                one.state = "rejected"
            batch = [one for one in batch if one.state == "live"]
            longest = max((len(one.token_ids) for one in batch), default=0)
            if longest > refilled_at:
                refilled_at = longest
                batch += self.refill(batch, len(rejected), first)

    def score(self, sheet: Sheet) -> float:
        return self.case.rate(text_of(sheet.token_ids))

    def rejected(self, batch: list[Sheet]) -> list[Sheet]:
        scores = [self.score(one) for one in batch]
        worst_first = sorted(batch, key=lambda one: (self.score(one), -one.index))
        cut, alpha = np.quantile(scores, self.options["alpha"]), self.options["alpha"]
        gone = [one for one in batch if self.score(one) < cut]
        gone += [one for one in worst_first[: int(alpha * len(batch))] if one not in gone]
        going_on = [one for one in worst_first if one.state == "live" and one not in gone]
        while going_on and self.fitting(max(len(o.token_ids) for o in going_on) + 1) < len(
            going_on
        ):
            gone.append(going_on.pop(0))
        return sorted(gone, key=lambda one: one.index)

    def refill(self, live: list[Sheet], num_freed: int, first: list[Sheet]) -> list[Sheet]:
        longest = max(len(one.token_ids) for one in live)
        num = min(num_freed, max(self.fitting(longest + self.ahead) - len(live), 0))
        if self.options["refill"] == "forks":
            best = sorted(live, key=lambda one: (-self.score(one), one.index))
            return self.begin([best[place % len(best)] for place in range(num)])
        is_first_there = any(one.state == "live" for one in first)
        return self.begin([None] * num) if is_first_there else []


def shown(decision: Decision) -> tuple[str, int, list[int], list[int]]:
    scored, rejected = list(decision.scored), list(decision.rejected)
    return decision.cause, decision.num_tokens, scored, rejected


@given(cases())
@some
def test_it_decides_begins_and_ends_as_the_simulation_does(case: Case) -> None:
    engine = FakeEngine(eos=case.eos)
    result, simulation = searched(case, engine), Simulation(case)
    assert [shown(decision) for decision in result.decisions] == simulation.decisions
    assert [(one.token_ids, one.parent, one.state) for one in result.candidates] == [
        (sheet.token_ids, sheet.parent, sheet.state) for sheet in simulation.sheets
    ]
    complete = [sheet for sheet in simulation.sheets if sheet.state == "complete"]
    best = min(complete, key=lambda sheet: (-simulation.score(sheet), sheet.index))
    assert result.best.index == best.index
    assert result.usage.generated_tokens == engine.num_drawn == simulation.num_drawn
    assert result.usage.peak_kv_bytes <= case.options["memory"]
    assert not engine.groups


@given(cases())
@some
def test_it_ends_within_two_lengths_a_wave_and_never_has_more_live_than_it_began(
    case: Case,
) -> None:
    most_live = 0

    def observe(search: Search) -> None:
        nonlocal most_live
        most_live = max(most_live, len(search.live))
        assert search.memory().next_step <= search.budget_bytes or search.live
        assert search.memory().in_use <= search.budget_bytes

    result = searched(case, observe=observe)
    assert most_live <= case.options["n"]
    num_waves = case.options["n"]  # there are no more
    assert result.usage.num_steps <= 2 * case.options["max_new_tokens"] * num_waves
    if case.options["refill"] == "forks":
        assert result.usage.num_steps <= case.options["max_new_tokens"] * num_waves


@given(cases())
@some
def test_with_alpha_zero_nothing_is_freed(case: Case) -> None:
    plain = searched(case, alpha=0.0, refill="none")
    assert searched(case, alpha=0.0).candidates == plain.candidates


@given(cases())
@some
def test_a_fresh_candidate_is_the_one_of_best_of_n(case: Case) -> None:
    result = searched(case, refill="fresh")
    whole = searched(case, algorithm="best_of_n", n=len(result.candidates), memory="1GiB")
    for one, other in zip(result.candidates, whole.candidates, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)]


@pytest.mark.parametrize("refill", WAYS)
def test_memory_is_used_again(refill: str) -> None:
    """And a pool of the memory of two makes no difference to prompts side by side."""
    memory = FakeEngine().kv_bytes(8, 6, 30)
    options: dict[str, Any] = {
        "memory": memory, "max_new_tokens": 30, "min_tokens": 4, "refill": refill,
    }  # fmt: skip
    prompts = [f"Why {place}?" for place in range(6)]
    alone = [
        specrej.generate(prompt, model=FakeEngine(), reward=FakeReward(), **options)
        for prompt in prompts
    ]
    for result in alone:
        decided = [index for decision in result.decisions for index in decision.scored]
        late = [one for one in result.candidates if one.index not in result.decisions[0].scored]
        assert late
        assert all(one.index in decided for one in late)
        assert all((one.parent is not None) == (refill == "forks") for one in late)
    engine = FakeEngine(total_bytes=2 * memory)
    together = dict(
        specrej.generate_batch(
            prompts, model=engine, reward=FakeReward(), total_memory=2 * memory, **options
        )
    )
    for number, result in enumerate(alone):
        outcome = together[number]
        assert isinstance(outcome, Result)
        assert outcome.candidates == result.candidates


class LaterEngine(FakeEngine):
    """Of more than two candidates it says that they need more memory than its formula says, as
    an engine does that decodes ahead.
    """

    def memory(self, prompt: int) -> Memory:
        memory, group = super().memory(prompt), self.groups[prompt]
        return memory._replace(next_step=memory.next_step * (1 + (len(group.live) > 2)))


@pytest.mark.parametrize("refill", WAYS)
def test_it_ends_where_the_engine_needs_more_than_was_reckoned(refill: str) -> None:
    engine, num_decisions = LaterEngine(), 0

    def observe(search: Search) -> None:
        nonlocal num_decisions
        num_decisions = len(search.decisions)
        assert num_decisions <= 200, "it goes round in circles"

    memory = engine.kv_bytes(5, 6, 30)
    options: dict[str, Any] = {"max_new_tokens": 30, "min_tokens": 2, "refill": refill}
    case = Case("Why?", {"memory": memory, **options}, 0.0, by_hash)
    result = searched(case, engine, observe=observe)
    assert result.is_complete
    assert any(one.index > 20 for one in result.candidates)
    assert any(decision.cause == "budget" for decision in result.decisions)


def test_a_calibrated_policy_promises_nothing_of_refilling() -> None:
    policy = CalibratedPolicy(n=4).to_policy()
    options: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward(), "policy": policy}
    assert "note" not in specrej.generate("Why?", **options).settings
    noted = specrej.generate("Why?", refill="fresh", **options)
    assert "calibrated for refill 'none', here 'fresh'" in noted.settings["note"]
