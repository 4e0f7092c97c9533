"""One order of candidates, whichever door they leave by, against a definition by hand."""

from collections.abc import Sequence
from functools import cmp_to_key

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import answer, decided, result_of
from fakes import FakeEngine, FakeReward
from specrej.batch.preferences import _fate, to_pair
from specrej.batch.requests import Request
from specrej.batch.rows import row_of
from specrej.errors import EngineError, RewardError, UsageError
from specrej.evaluation.bench import _candidate
from specrej.evaluation.report.stories import _winner
from specrej.search.choosing import choose, lowest, rank, ranked
from specrej.search.events import _decided
from specrej.search.policies import top
from specrej.search.search import Search
from specrej.server.answering import best_answers
from specrej.settings import Settings
from specrej.types import Candidate, Decision, SamplingParams, Standing

REWARDS = st.sampled_from([None, -7.5, -1.0, 0.0, 0.0, 2.0])
KINDS = st.sampled_from(
    ["live", "complete", "rejected early", "rejected at its end", "lost", "filtered"]
)


@st.composite
def fields(draw: st.DrawFn) -> tuple[list[Candidate], list[Decision]]:
    """Candidates of all fates, in the order of their indices, and the decisions that say who was
    filtered and lost."""
    candidates, filtered, lost = [], [], []
    for index, kind in enumerate(draw(st.lists(KINDS, min_size=1, max_size=9))):
        reward, length = draw(REWARDS), draw(st.integers(1, 3))
        state = kind if kind in ("live", "complete") else "rejected"
        ending = {"live": None, "rejected early": None, "lost": "lost"}.get(kind, "eos")
        candidates.append(answer(index, f"{index}", reward, state, ending, [97] * length))  # type: ignore[arg-type]
        filtered += [index] if kind == "filtered" else []
        lost += [index] if kind == "lost" else []
    return candidates, [decided("filter", filtered), decided("lost", lost)]


def is_better(one: Candidate, other: Candidate) -> bool:
    """By hand, case by case."""
    if one.state != other.state:
        return one.state == "complete"
    if one.reward != other.reward:
        if one.reward is None or other.reward is None:
            return other.reward is None
        return one.reward > other.reward
    if one.state == "live" and len(one.token_ids) != len(other.token_ids):
        return len(one.token_ids) > len(other.token_ids)
    return one.index < other.index


def by_hand(candidates: Sequence[Candidate]) -> list[int]:
    left = [candidate for candidate in candidates if candidate.state in ("live", "complete")]

    def compare(one: Candidate, other: Candidate) -> int:
        return -1 if is_better(one, other) else 1

    return [candidate.index for candidate in sorted(left, key=cmp_to_key(compare))]


@given(fields())
def test_answers_come_in_one_order(field: tuple[list[Candidate], list[Decision]]) -> None:
    candidates, decisions = field
    order = by_hand(candidates)
    assert [candidate.index for candidate in ranked(reversed(candidates))] == order
    if not order:
        with pytest.raises((EngineError, RewardError, UsageError)):
            choose(candidates, decisions, "r")
        return
    assert choose(candidates, decisions, "r").index == order[0]
    result = result_of(*candidates, best=order[0], decisions=decisions)
    complete = [index for index in order if candidates[index].state == "complete"]
    for wanted in (1, 3, 99):
        assert [each.index for each in best_answers(result, wanted)] == (
            complete[:wanted] or order[:1]
        )
    if complete and all(candidates[index].reward is not None for index in complete):
        assert _winner({"candidates": [_candidate(each) for each in candidates]}) == complete[0]  # type: ignore[typeddict-item]


@given(fields())
def test_a_pair_sets_the_best_against_the_worst_that_came_to_its_end(
    field: tuple[list[Candidate], list[Decision]],
) -> None:
    candidates, decisions = field
    order = by_hand(candidates)
    ended = [c for c in candidates if c.finish_reason == "eos" and c.reward is not None]
    ended = [c for c in ended if c.index not in decisions[0].rejected]
    worst = max((-c.reward, c.index) for c in ended)[1] if len(ended) > 1 else None  # type: ignore[operator]
    there = lowest(candidates, decisions)
    assert (None if there is None else there.index) == worst
    if order:
        request = Request(
            id="a", prompt="Hi", settings=Settings(), num_kept=9, line=1, form="plain"
        )
        row = row_of(
            request,
            result_of(*candidates, best=order[0], decisions=decisions),
            FakeEngine().detokenizer,
        )
        assert row["text"] == row["answers"][0]["text"] == str(order[0])
        fate = _fate(row, 0.0)
        if fate == "pairs":
            pair = to_pair(row)
            assert pair["chosen"][0]["content"] == str(order[0])
            assert pair["rejected"][0]["content"] == str(worst)
        expected = {True: "alone"}.get(
            worst is None, "unscored" if candidates[order[0]].reward is None else fate
        )
        assert fate == expected


def test_a_row_of_another_version_whose_rejected_side_was_lost_or_not_scored_makes_no_pair() -> (
    None
):
    best = {"text": "good", "reward": -3.0, "num_tokens": 2, "finish_reason": "eos", "index": 0}
    row = {"id": "a", "prompt": "Hi", "error": None, "answers": [best]}
    assert _fate({**row, "lowest": best | {"text": "x", "reward": None}}, 0.5) == "unscored"
    assert (
        _fate({**row, "answers": [best | {"reward": None}], "lowest": best | {"text": "x"}}, 0.5)
        == "unscored"
    )
    assert (
        _fate({**row, "lowest": best | {"text": "x", "finish_reason": "lost", "reward": -9.0}}, 0.5)
        == "alone"
    )


@given(st.lists(REWARDS, min_size=1, max_size=9), st.integers(1, 9), st.data())
def test_who_goes_for_want_of_memory_is_who_would_be_chosen_last(
    rewards: list[float | None], room: int, data: st.DataObject
) -> None:
    """A decision that keeps all and has no room for all, a device without memory, and what is
    told meanwhile."""

    def begun() -> Search:
        search = Search(
            FakeEngine(eos=0.0), FakeReward(), "Hi", SamplingParams(max_new_tokens=8), 10**6, {}
        )
        search.open()
        search.start(len(rewards))
        for candidate, reward in zip(search.candidates, rewards, strict=True):
            candidate.rewards = {} if reward is None else {0: reward}
        return search

    search = begun()
    order = by_hand(search.candidates)
    search._budget.fitting = lambda num_tokens: room  # type: ignore[method-assign]
    search.keep([True] * len(rewards))
    assert [candidate.index for candidate in search.live] == sorted(order[:room])
    assert _decided(0, search, 0, search.decisions[-1]).best == order[0]
    search.close()

    search = begun()
    assert search.give_up() == (len(rewards) > 1)
    assert [candidate.index for candidate in search.live] == sorted(
        order[: (len(rewards) + 1) // 2]
    )
    search.close()


@given(st.lists(st.sampled_from([-7.5, -1.0, 0.0, 2.0]), min_size=1, max_size=9), st.integers(1, 9))
def test_a_rule_and_numpy_agree_on_the_first_of_equals(scores: list[float], k: int) -> None:
    order = by_hand([answer(index, "", score) for index, score in enumerate(scores)])
    stays = top(k)(Standing(8, scores, [True] * len(scores)))
    assert [place for place, stay in enumerate(stays) if stay] == sorted(order[:k])
    assert order[0] == int(np.argmax(scores))
    assert order == np.argsort(-np.array(scores), kind="stable").tolist()
    assert min(range(len(scores)), key=lambda place: rank(scores[place], place)) == order[0]


def test_when_only_lost_ones_were_scored_nobody_lost_is_told_as_the_leader() -> None:
    search = Search(
        FakeEngine(eos=0.0), FakeReward(), "Hi", SamplingParams(max_new_tokens=8), 10**6, {}
    )
    search.open()
    search.start(2)
    search._decide("filter", search.candidates[:1], search.candidates[:1])
    assert _decided(0, search, 0, search.decisions[0]).best == 1
    search._decide("filter", search.candidates[1:], search.candidates[1:])
    told = _decided(0, search, 1, search.decisions[1])
    assert (told.best, told.text) == (None, "")
    search.close()
