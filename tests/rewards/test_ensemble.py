import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeEngine, FakeReward, by_hash, in_thirds, watched
from specrej.errors import RewardError, UsageError
from specrej.rewards.ensemble import EnsembleReward
from specrej.search.search import Search
from specrej.types import Candidate, Message, Result

PROMPT = [{"role": "user", "content": "Why?"}]

numbers = st.floats(-1e3, 1e3)
some = settings(max_examples=40, deadline=None, derandomize=True)


def candidate(index: int, text: str = "", **rest: Any) -> Candidate:
    return Candidate(index, text=text, **rest)


def length(text: str) -> float:
    return float(len(text))


def num_a(text: str) -> float:
    return float(text.count("a"))


LENGTH, NUM_A = FakeReward(length), FakeReward(num_a)
TEXTS = [candidate(3, "aab"), candidate(4, "b"), candidate(9, "aabbbb")]


def score(reward: Any, candidates: Sequence[Candidate] = TEXTS) -> list[float]:
    return list(reward.open(PROMPT).score(candidates))


# What it is made of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "unknown combine of an ensemble 'mean'"),
        ({"combine": "worst", "weights": [1, 2]}, "takes the lowest score, whatever the weights"),
        (
            {"combine": "cvar", "weights": [1, -2]},
            "with combine='cvar' weights must be above 0, got -2",
        ),
        ({"combine": "mean_minus_std", "weights": [1, -2]}, "weights must be above 0, got -2"),
        ({"risk": 1.0}, "risk goes with combine='mean_minus_std', not with 'sum'"),
        ({"combine": "worst", "share": 0.5}, "share goes with combine='cvar', not with 'worst'"),
        ({"combine": "cvar", "share": 0.0}, "share must be above 0 and at most 1, got 0.0"),
        ({"combine": "cvar", "share": 1.1}, "share must be above 0 and at most 1, got 1.1"),
        ({"combine": "mean_minus_std", "risk": -1.0}, "risk must be above 0, got -1.0"),
        ({"combine": "mean_minus_std", "risk": math.inf}, "risk must be above 0"),
        ({"combine": "mean_minus_std", "risk": math.nan}, "risk must be above 0"),
        ({"weights": [1.0]}, "an ensemble of 2 members got 1 weights"),
        ({"weights": [1.0, 0.0]}, "a member's weight must be finite and not 0, got 0.0"),
        ({"weights": [1.0, math.nan]}, "a member's weight must be finite and not 0, got nan"),
        ({"scale": "x"}, "unknown scale of an ensemble 'x'"),
        ({"filter": LENGTH, "filter_when": "never"}, "unknown filter_when of an ensemble 'never'"),
        ({"length_penalty": math.inf}, "length_penalty must be finite, got inf"),
        ({"truncated": 5.0}, "truncated must be 0 or below, got 5.0"),
        ({"truncated": math.nan}, "truncated must be 0 or below, got nan"),
        ({"truncated": -math.inf}, "truncated must be 0 or below, got -inf"),
    ],
)
def test_what_cannot_be_combined_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EnsembleReward([LENGTH, NUM_A], **options)


def test_an_ensemble_needs_members() -> None:
    with pytest.raises(UsageError, match="an ensemble needs members"):
        EnsembleReward([])


def test_members_may_be_whatever_as_reward_takes() -> None:
    answers = [candidate(0, "ab", logprobs=[-1.0, -3.0])]
    reward = EnsembleReward(
        ["logprob", "logprob:sum", lambda prompt, texts: [len(t) for t in texts], NUM_A],
        [1, 2, 3, 4],
    )
    session = reward.open(PROMPT)
    assert session.score(answers) == [-2.0 - 2 * 4.0 + 3 * 2 + 4 * 1]
    assert session.member_scores == {0: (-2.0, -4.0, 2.0, 1.0)}


# Scales


@given(st.lists(numbers, min_size=2, max_size=8, unique=True))
@some
def test_z_scores_of_one_batch_are_numpys(scores: list[float]) -> None:
    rates = dict(zip("abcdefgh", scores, strict=False))
    answers = [candidate(index, letter) for index, letter in enumerate(rates)]
    values = np.array(score(EnsembleReward([FakeReward(rates.__getitem__)], scale="z"), answers))
    if np.std(scores) > 1e-5 * np.max(np.abs(scores)):
        np.testing.assert_allclose(
            values, (np.array(scores) - np.mean(scores)) / np.std(scores), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("value", [0.1, 0.0, -3.3e5])
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_constant_member_is_zero_and_rounding_is_no_spread(value: float, noise: float) -> None:
    constant = FakeReward(lambda text: value * (1 + noise * len(text)))
    assert score(EnsembleReward([constant, NUM_A], scale="z")) == score(
        EnsembleReward([NUM_A], scale="z")
    )
    assert score(EnsembleReward([constant], scale="z"), TEXTS[:1]) == [0.0]


def test_a_scale_that_was_flat_gets_its_spread_when_scores_first_differ_and_keeps_it() -> None:
    session = EnsembleReward([NUM_A], scale="z").open(PROMPT)
    assert session.score([candidate(0, "b"), candidate(1, "b"), candidate(2, "b")]) == [
        0.0,
        0.0,
        0.0,
    ]
    assert session.score([candidate(1, "bb")]) == [0.0]
    assert session.score([candidate(1, "bba"), candidate(2, "bb")]) == [1 / np.std([0, 1, 0]), 0.0]
    assert session.score([candidate(1, "bbaa"), candidate(2, "bba")]) == [
        2 / np.std([0, 1, 0]),
        1 / np.std([0, 1, 0]),
    ]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6))
@some
def test_scores_on_a_scale_are_in_the_order_of_the_raw_ones_whenever_they_were_given(
    batches: list[list[int]],
) -> None:
    session = EnsembleReward([NUM_A], scale="z").open(PROMPT)
    given: list[tuple[int, float]] = []
    for number, batch in enumerate(batches):
        answers = [candidate(10 * number + place, "a" * count) for place, count in enumerate(batch)]
        given += zip(batch, session.score(answers), strict=True)
    for one, other in zip(
        sorted(given), sorted(given, key=lambda pair: (pair[1], pair[0])), strict=True
    ):
        assert one == other
    assert len(set(given)) == len({raw for raw, _ in given}) == len({value for _, value in given})


def generate(reward: Any, **options: Any) -> Result:
    options = {"n": 30, "max_new_tokens": 24, "min_tokens": 6, "seed": 5, **options}
    return watched("Why?", model=FakeEngine(eos=0.08), reward=reward, **options)


def test_in_a_run_all_decisions_share_the_scale_of_the_first_one() -> None:
    members = [FakeReward(by_hash), FakeReward(num_a)]
    result = generate(EnsembleReward(members, [1, 2], scale="z"), decide="every:4", alpha=0.3)
    first = [result.candidates[index] for index in result.decisions[0].scored]
    assert len(result.decisions) > 3
    num_tokens = result.decisions[0].num_tokens
    texts = [FakeEngine().decode(answer.token_ids[:num_tokens]) for answer in first]
    scales = [
        (np.mean(raw), np.std(raw))
        for raw in ([by_hash(text) for text in texts], [num_a(text) for text in texts])
    ]

    def expected(text: str) -> float:
        (hash_mean, hash_std), (a_mean, a_std) = scales
        return float((by_hash(text) - hash_mean) / hash_std + 2 * (num_a(text) - a_mean) / a_std)

    for answer in result.candidates:
        assert answer.reward == pytest.approx(expected(answer.text))
    complete = [answer for answer in result.candidates if answer.state == "complete"]
    assert result.best is max(complete, key=lambda answer: expected(answer.text))


def test_a_scale_without_scores_is_not_fitted_by_candidates_that_a_filter_rejects() -> None:
    answers = [candidate(0, "aaaaaaaa"), candidate(1, "a"), candidate(2, "aaa")]
    reward = EnsembleReward(
        [NUM_A],
        scale="z",
        filter=lambda _, texts: [len(t) < 5 for t in texts],
        filter_when="always",
    )
    session = reward.open(PROMPT)
    assert session.score(answers) == [-math.inf, -1.0, 1.0]
    assert session.score(answers[:1]) == [-math.inf]


# Penalties


def test_length_and_truncation_are_taken_off_after_combining() -> None:
    answers = [
        candidate(0, "aab", token_ids=[1, 2, 3], state="complete", finish_reason="length"),
        candidate(1, "aab", token_ids=[1, 2, 3], state="complete", finish_reason="eos"),
        candidate(2, "aab", token_ids=[1, 2, 3], state="complete", finish_reason="stop"),
        candidate(3, "aab", token_ids=[1, 2, 3, 4]),
        candidate(4, ""),
    ]
    reward = EnsembleReward([LENGTH, NUM_A], combine="worst", length_penalty=0.5, truncated=-2)
    assert score(reward, answers) == [2 - 1.5 - 2, 2 - 1.5, 2 - 1.5, 2 - 2.0, 0.0]


def test_a_truncated_answer_loses_to_one_that_ends() -> None:
    penalised, plain = (
        generate(EnsembleReward([LENGTH], truncated=-20)),
        generate(EnsembleReward([LENGTH])),
    )
    assert plain.best.finish_reason == "length"
    assert penalised.best.finish_reason == "eos"
    cut_off = [answer for answer in penalised.candidates if answer.finish_reason == "length"]
    assert all(answer.reward == length(answer.text) - 20 for answer in cut_off)


# Filters


def recorded(
    passes: Callable[[str], bool], seen: list[str]
) -> Callable[[str, list[str]], list[float]]:
    def verdicts(prompt: str, texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [1.0 if passes(text) else 0.0 for text in texts]

    return verdicts


@pytest.mark.parametrize("when", ["complete", "always"])
def test_a_filter_judges_complete_candidates_and_others_where_told_to(when: str) -> None:
    seen: list[str] = []
    answers = [
        candidate(0, "a", state="complete", finish_reason="eos"),
        candidate(1, "ba", state="complete", finish_reason="length"),
        candidate(2, "bb"),
        candidate(5, "ab"),
    ]
    member = FakeReward(length)
    reward = EnsembleReward(
        [member], filter=recorded(lambda text: text[0] == "a", seen), filter_when=when
    )
    expected = [1.0, -math.inf, 2.0 if when == "complete" else -math.inf, 2.0]
    assert score(reward, answers) == expected
    assert seen == (["a", "ba"] if when == "complete" else ["a", "ba", "bb", "ab"])
    assert member.sessions[0].scored == [
        [a.index for a, s in zip(answers, expected, strict=True) if s > 0]
    ]


@pytest.mark.parametrize(
    ("verdict", "passes"), [(1, True), (0.001, True), (0, False), (-0.5, False), (-math.inf, False)]
)
def test_a_filter_is_passed_with_a_score_above_zero(verdict: float, passes: bool) -> None:
    reward = EnsembleReward(
        [LENGTH], filter=lambda _, texts: [verdict] * len(texts), filter_when="always"
    )
    assert score(reward) == ([3.0, 1.0, 6.0] if passes else [-math.inf] * 3)


def test_a_member_that_gives_minus_infinity_rejects_whatever_its_weight() -> None:
    picky = FakeReward(lambda text: -math.inf if len(text) == 1 else 1.0)
    for options in (
        {"weights": [-1, 1]},
        {"combine": "worst"},
        {"scale": "z"},
        {"combine": "cvar"},
    ):
        values = score(EnsembleReward([picky, LENGTH], **options))
        assert [math.isfinite(value) for value in values] == [True, False, True]


def test_in_a_run_filtered_candidates_are_gone_at_once_and_the_winner_passed() -> None:
    member, judge = FakeReward(by_hash), FakeReward(in_thirds)
    result = generate(EnsembleReward([member], filter=judge), decide="every:4", alpha=0.2)
    filtered = {index for d in result.decisions if d.cause == "filter" for index in d.rejected}
    assert filtered
    for answer in result.candidates:
        if answer.index in filtered:
            assert answer.finish_reason is not None
            assert in_thirds(answer.text) == 0
        elif answer.state == "complete":
            assert in_thirds(answer.text) > 0
    assert member.sessions[0].dropped == judge.sessions[0].dropped
    assert set(judge.sessions[0].dropped) == {
        a.index for a in result.candidates if a.state == "rejected"
    }
    assert member.sessions[0].is_closed
    assert judge.sessions[0].is_closed


# Sessions of members


class Failing(FakeReward):
    """Fails where it is told to."""

    def __init__(self, at: str) -> None:
        super().__init__(length)
        self.name, self._at = "failing", at

    def open(self, messages: Sequence[Message]) -> Any:
        if self._at == "open":
            raise OSError("asleep")
        session = super().open(messages)

        def fail(*_: Any) -> Any:
            raise OSError("asleep")

        setattr(session, self._at, fail)
        return session


@pytest.mark.parametrize(
    ("at", "subject"), [("open", "the prompt"), ("score", "candidates 3 to 9")]
)
def test_a_member_that_fails_is_named_with_the_candidates(at: str, subject: str) -> None:
    with pytest.raises(
        RewardError, match=rf"the member 'failing' of the ensemble failed on {subject}: OSError"
    ):
        score(EnsembleReward([LENGTH, Failing(at)]))


def test_a_member_that_fails_on_dropping_is_named() -> None:
    session = EnsembleReward([LENGTH, Failing("drop")]).open(PROMPT)
    with pytest.raises(
        RewardError,
        match=r"the member 'failing' of the ensemble failed on the dropped candidates \[3\]",
    ):
        session.drop([3])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, math.nan, 1.0], "'odd' gave nan for candidate 4"),
        ([1.0, 1.0, math.inf], "'odd' gave inf for candidate 9"),
        ([1.0, 1.0], "'odd' gave 2 scores for 3 candidates; they part ways at candidate 9"),
        ([1.0] * 4, "'odd' gave 4 scores for 3 candidates; they part ways at candidate 9"),
        (["x"] * 3, "the member 'odd' of the ensemble failed on candidates 3 to 9: ValueError"),
    ],
)
@pytest.mark.parametrize("place", ["member", "filter"])
def test_scores_of_a_member_are_checked(place: str, scores: list[Any], message: str) -> None:
    odd = FakeReward(length)
    odd.name = "odd"
    session_of = odd.open

    def open_odd(messages: Sequence[Message]) -> Any:
        session = session_of(messages)
        session.score = lambda candidates: scores  # type: ignore[method-assign]
        return session

    odd.open = open_odd  # type: ignore[method-assign]
    reward = (
        EnsembleReward([LENGTH, odd])
        if place == "member"
        else EnsembleReward([LENGTH], filter=odd, filter_when="always")
    )
    with pytest.raises(RewardError, match=message):
        score(reward)


def test_members_already_begun_are_closed_when_another_fails_on_the_prompt() -> None:
    first = FakeReward(length)
    with pytest.raises(RewardError):
        EnsembleReward([first, Failing("open")]).open(PROMPT)
    assert first.sessions[0].is_closed


def test_all_members_are_closed_even_if_one_fails() -> None:
    first, last = FakeReward(length), FakeReward(length)
    session = EnsembleReward([first, Failing("close"), last]).open(PROMPT)
    with pytest.raises(OSError, match="asleep"):
        session.close()
    assert first.sessions[0].is_closed
    assert last.sessions[0].is_closed


def test_tokens_are_those_of_all_members_and_drops_reach_all() -> None:
    members = [FakeReward(length), FakeReward(num_a), FakeReward(in_thirds)]
    session = EnsembleReward(members[:2], filter=members[2], filter_when="always").open(PROMPT)
    session.score([candidate(0, "aab"), candidate(1, "b")])
    assert session.num_tokens == sum(member.sessions[0].num_tokens for member in members) > 4
    session.drop([1])
    assert [member.sessions[0].dropped for member in members] == [[1], [1], [1]]


def test_what_members_keep_is_told_by_the_least_of_those_that_read_and_by_the_sum_of_bytes() -> (
    None
):
    def kept(*members: tuple[str, int] | None) -> tuple[str, int]:
        rewards = [FakeReward(length) for _ in members]
        session = EnsembleReward(rewards).open(PROMPT)
        for reward, figures in zip(rewards, members, strict=True):
            if figures is not None:
                vars(reward.sessions[0]).update(reuse=figures[0], peak_kv_bytes=figures[1])
        session.score(TEXTS)
        return session.reuse, session.peak_kv_bytes

    assert kept(("answers", 5), ("prompt", 7)) == ("prompt", 12)
    assert kept(("answers", 5), ("answers", 5)) == ("answers", 10)
    assert kept(("answers", 5), None) == ("none", 5)
    session = EnsembleReward(["logprob"]).open(PROMPT)
    session.score([candidate(0, "a", logprobs=[-1.0])])
    assert (session.reuse, session.peak_kv_bytes) == ("none", 0)


def test_flops_are_told_where_all_that_read_have_the_same() -> None:
    def ensemble(*figures: float | None) -> EnsembleReward:
        members = [FakeReward(length) for _ in figures]
        for member, figure in zip(members, figures, strict=True):
            member.flops_per_token = figure
        return EnsembleReward(members[1:], filter=members[0])

    assert ensemble(7.0, 7.0).flops_per_token == 7.0
    assert ensemble(0.0, 7.0).flops_per_token == 7.0
    assert ensemble(0.0, 0.0).flops_per_token == 0.0
    assert ensemble(5.0, 7.0).flops_per_token is None
    assert ensemble(7.0, None).flops_per_token is None
    assert ensemble(None, None).flops_per_token is None


def test_a_member_that_does_not_know_its_flops_serves_as_well() -> None:
    member = FakeReward(length)
    member.flops_per_token = None
    reward = EnsembleReward([member])
    assert reward.flops_per_token is None
    assert score(reward) == [3.0, 1.0, 6.0]


def test_the_scores_of_members_can_be_seen_while_a_search_runs() -> None:
    reward, seen = EnsembleReward([LENGTH, NUM_A]), []
    session_of = reward.open

    def open_seen(messages: Sequence[Message]) -> Any:
        seen.append(session_of(messages))
        return seen[-1]

    reward.open = open_seen  # type: ignore[method-assign]

    def observe(search: Search) -> None:
        scored = [answer for answer in search.candidates if answer.rewards]
        assert set(seen[0].member_scores) == {answer.index for answer in scored}
        assert all(sum(seen[0].member_scores[answer.index]) == answer.reward for answer in scored)

    result = generate(reward, observe=observe)
    assert {a.index: (length(a.text), num_a(a.text)) for a in result.candidates} == seen[
        0
    ].member_scores
