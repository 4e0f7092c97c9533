"""Algorithms that vote or stop early, beside a brute-force simulation.

All candidates are decoded to their end once, and what each algorithm must answer is worked out
from these.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import LETTERS, FakeEngine, FakeReward, alike, by_hash, in_thirds
from specrej.engines.base import Token
from specrej.errors import SamplingError, UsageError
from specrej.registry import ALGORITHMS
from specrej.rewards.answers import extractor_of
from specrej.search.algorithms import best_of_n
from specrej.search.policies import fraction
from specrej.search.voting import by_reward, count
from specrej.types import Candidate, Result, SamplingParams

some = settings(max_examples=40, deadline=None, derandomize=True)


class Surveyed(FakeEngine):
    """A fake that says how likely other tokens were: a hash of the one drawn."""

    def check_sampling(self, sampling: SamplingParams) -> None:
        assert sampling.constraint is None

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        return [token._replace(top_logprobs=self._top(token)) for token in super().step(limits)]

    def _top(self, token: Token) -> tuple[tuple[int, float], ...]:
        num = self.groups[token.prompt].sampling.top_logprobs
        return tuple(
            (letter, -1 - (token.token_id * 7 + place) % 11 / 3)
            for place, letter in enumerate((LETTERS * 3)[:num])
        )


def last_vowel(text: str) -> str | None:
    """An answer of few values, which some texts lack."""
    vowels = [letter for letter in text[-6:] if letter in "ae"]
    return vowels[-1] * (1 + len(vowels) // 3) if vowels else None


def signed(text: str) -> float:
    return in_thirds(text) - 1


CASES: dict[str, Any] = {
    "seed": st.integers(0, 2**64 - 1),
    "n": st.integers(1, 20),
    "max_new_tokens": st.integers(2, 24),
    "rows": st.integers(1, 6),
    "alpha": st.sampled_from([0.0, 0.1, 0.5, 0.9]),
}
cases = st.fixed_dictionaries(CASES)
rates = st.sampled_from([by_hash, in_thirds, alike, signed])


def run(case: dict[str, Any], rate: Any, **options: Any) -> Result:
    engine = Surveyed(eos=0.05)
    memory = engine.kv_bytes(5, case["rows"], case["max_new_tokens"])
    usual = {name: value for name, value in case.items() if name != "rows"}
    result = specrej.generate(
        "Why?",
        engine=engine,
        reward=FakeReward(rate),
        **{"extract": last_vowel, "memory": memory, **usual, **options},
    )
    assert not engine.groups
    return result


def all_of(case: dict[str, Any], rate: Any) -> list[Candidate]:
    """Every candidate to its end, with its reward."""
    full = run(case, rate, algorithm="best_of_n", memory="1GiB", top_logprobs=20)
    return list(full.candidates)


def elected(voters: list[Candidate], weights: list[float]) -> int | None:
    """Who must win, by plain counting; None where nobody votes."""
    sums: dict[str, float] = {}
    for voter, weight in zip(voters, weights, strict=True):
        if (answer := last_vowel(voter.text)) is not None:
            sums[answer] = math.fsum([sums.get(answer, 0.0), weight])
    if not sums:
        return None
    leaders = {answer for answer, total in sums.items() if math.isclose(total, max(sums.values()))}
    able = [voter for voter in voters if last_vowel(voter.text) in leaders]
    return max(able, key=lambda one: (one.reward, -one.index)).index


def best_of(voters: list[Candidate]) -> int:
    return max(voters, key=lambda one: (one.reward, -one.index)).index


def shifted(voters: list[Candidate]) -> list[float]:
    rewards = [one.reward or 0.0 for one in voters]
    return [reward - min(*rewards, 0.0) for reward in rewards]


def spread(candidate: Candidate) -> list[float]:
    """The confidence of each token."""
    return [-sum(p for _, p in top) / len(top) for top in candidate.top_logprobs]


def group_of(candidate: Candidate, window: int) -> list[float]:
    """The confidence of each window; of all where there is none."""
    tokens = spread(candidate)
    ends = range(window, len(tokens) + 1)
    return [sum(tokens[end - window : end]) / window for end in ends] or [sum(tokens) / len(tokens)]


def test_an_algorithm_s_answer_is_what_it_returns() -> None:
    def last(search: Any, n: Any, policy: Any) -> Any:
        yield from best_of_n(search, n, policy)
        return search.candidates[-1]

    given_case = {"seed": 1, "n": 5, "max_new_tokens": 8, "rows": 2, "alpha": 0.5}
    result = run(given_case, by_hash, algorithm=last)
    assert result.best.index == 4
    assert max(one.reward or 0 for one in result.candidates) > (result.reward or 0)


def stray(search: Any, n: Any, policy: Any) -> Any:
    search.start(2)
    while search.live:
        yield lambda length, last: False
        search.keep([True, False])
    return Candidate(0)


def refused(search: Any, n: Any, policy: Any) -> Any:
    yield from stray(search, n, policy)
    return search.candidates[1]


@pytest.mark.parametrize(
    ("algorithm", "said"), [(stray, "returned Candidate"), (refused, "returned a rejected one")]
)
def test_an_answer_that_is_none_is_refused(algorithm: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        specrej.generate("Why?", engine=FakeEngine(), reward=FakeReward(), algorithm=algorithm)


@given(cases, rates)
@some
def test_majority_vote_counts_equal_answers(case: dict[str, Any], rate: Any) -> None:
    everyone = all_of(case, rate)
    expected = elected(everyone, [1.0] * len(everyone))
    result = run(case, rate, algorithm="majority_vote")
    assert result.best.index == (best_of(everyone) if expected is None else expected)
    answers = [last_vowel(one.text) for one in everyone]
    assert result.votes is not None
    assert result.votes == Counter(answer for answer in answers if answer is not None)
    assert list(result.votes.values()) == sorted(result.votes.values(), reverse=True)
    assert last_vowel(result.text) == next(iter(result.votes), None)


@given(cases, rates)
@some
def test_weighted_best_of_n_sums_rewards(case: dict[str, Any], rate: Any) -> None:
    everyone = all_of(case, rate)
    expected = elected(everyone, shifted(everyone))
    result = run(case, rate, algorithm="weighted_best_of_n")
    assert result.best.index == (best_of(everyone) if expected is None else expected)


@given(cases, rates, st.sampled_from(["budget", "every:4", "at:3,9"]))
@some
def test_voted_rejection_is_speculative_rejection_whose_survivors_vote(
    case: dict[str, Any], rate: Any, decide: str
) -> None:
    plain = run(case, rate, decide=decide)
    result = run(case, rate, decide=decide, algorithm="voted_rejection")
    for one, other in zip(plain.candidates, result.candidates, strict=True):
        assert one.token_ids == other.token_ids
    survivors = [one for one in result.candidates if one.state == "complete"]
    assert {one.index for one in plain.candidates if one.state == "complete"} <= {
        one.index for one in survivors
    }
    expected = elected(survivors, shifted(survivors))
    assert result.best.index == (best_of(survivors) if expected is None else expected)


@given(cases, rates)
@some
def test_self_certainty_gives_votes_by_places(case: dict[str, Any], rate: Any) -> None:
    everyone = all_of(case, rate)
    certainty = [sum(spread(one)) / len(spread(one)) for one in everyone]
    order = sorted(range(len(everyone)), key=lambda place: (-certainty[place], place))
    votes = [float((len(everyone) - order.index(place)) ** 1.2) for place in range(len(everyone))]
    expected = elected(everyone, votes)
    result = run(case, rate, algorithm="self_certainty")
    assert result.best.index == (best_of(everyone) if expected is None else expected)


def confident(candidates: list[Candidate], alpha: float, window: int) -> list[Candidate]:
    """The share of most confident ones, as Algorithm 1's quantile has it."""
    scores = [min(group_of(one, window)) for one in candidates]
    kept = fraction(alpha)(specrej.Standing(0, scores, [False] * len(scores)))
    return [one for one, keep in zip(candidates, kept, strict=True) if keep]


@given(cases, rates, st.integers(1, 8))
@some
def test_deepconf_filters_and_weighs_by_confidence(
    case: dict[str, Any], rate: Any, window: int
) -> None:
    everyone = all_of(case, rate)
    voters = confident(everyone, case["alpha"], window)
    expected = elected(voters, [min(group_of(one, window)) for one in voters])
    result = run(case, rate, algorithm="deepconf", window=window)
    assert result.best.index == (best_of(everyone) if expected is None else expected)


@given(cases, rates, st.integers(1, 8), st.integers(2, 8))
@some
def test_online_deepconf_stops_where_confidence_falls(
    case: dict[str, Any], rate: Any, window: int, warm_up: int
) -> None:
    everyone = all_of(case, rate)
    result = run(case, rate, algorithm="deepconf_online", window=window, warm_up=warm_up)
    first = everyone[:warm_up]
    bar = -math.inf
    if len(first) == warm_up:
        bar = min(min(group_of(one, window)) for one in confident(first, case["alpha"], window))
    for one, full in zip(result.candidates, everyone, strict=False):
        lows = [
            place + window
            for place, low in enumerate(group_of(full, window))
            if low < bar and len(full.token_ids) >= window
        ]
        is_stopped = one.index >= warm_up and lows and lows[0] < len(full.token_ids)
        assert one.state == ("rejected" if is_stopped else "complete")
        assert one.token_ids == full.token_ids[: lows[0] if is_stopped else None]
    done = [one for one in result.candidates if one.state == "complete"]
    voters = [one for one in done if min(group_of(one, window)) >= bar]
    expected = elected(voters, [min(group_of(one, window)) for one in voters])
    assert result.best.index == (best_of(done) if expected is None else expected)
    assert ("stopped nobody" in (result.note or "")) == (case["n"] <= warm_up)
    if len(result.candidates) < len(everyone):
        sums: dict[str | None, float] = {}
        for one in voters:
            answer = last_vowel(one.text)
            sums[answer] = sums.get(answer, 0.0) + min(group_of(one, window))
        sums.pop(None, None)
        assert max(sums.values()) >= 0.95 * sum(sums.values())


@pytest.mark.parametrize("n", [3, "auto"])
def test_online_deepconf_says_that_it_could_stop_nobody(n: Any) -> None:
    case = {"seed": 1, "n": n, "max_new_tokens": 8, "rows": 3, "alpha": 0.5}
    result = run(case, by_hash, algorithm="deepconf_online", warm_up=5)
    assert result.note == (
        "the algorithm 'deepconf_online' stopped nobody: it decodes the first 5 candidates "
        f"(warm_up) to their end, and {len(result.candidates)} began"
    )


@given(cases, st.floats(0, 1_000_003), st.sampled_from(["budget", "every:4"]))
@some
def test_threshold_ends_with_the_first_good_enough(
    case: dict[str, Any], bar: float, decide: str
) -> None:
    everyone = all_of(case, by_hash)
    result = run(case, by_hash, algorithm="threshold", threshold=bar, decide=decide)
    done = [one for one in result.candidates if one.state == "complete"]
    good = [one for one in everyone if (one.reward or 0) >= bar]
    assert result.best.index == best_of(done)
    assert ((result.reward or 0) >= bar) == bool(good)
    said = f"the threshold {bar} was reached", f"no candidate reached the threshold {bar}"
    unused, note = (result.note or "").split("; ")
    assert note == said[not good]
    assert "extract" in unused
    assert "decide" not in unused
    if not good:
        assert [one.token_ids for one in result.candidates] == [one.token_ids for one in everyone]
    elif decide == "budget":  # it looks after whole waves
        size = len(result.decisions[0].scored)
        assert len(result.candidates) == min(len(everyone), (good[0].index // size + 1) * size)


@pytest.mark.parametrize(
    ("algorithm", "given", "ignored"),
    [
        ("best_of_n", {"refill": "forks", "window": 8}, "refill 'forks', window 8"),
        ("majority_vote", {"threshold": 0.5, "extract": "number"}, "threshold 0.5"),
        ("beam_search", {"decide": "every:4", "warm_up": 2}, "decide 'every:4', warm_up 2"),
        ("voted_rejection", {"refill": "fresh", "alpha": 0.3}, "refill 'fresh'"),
        ("deepconf", {"keep": 2, "window": 4, "extract": "number"}, None),
        ("speculative_rejection", {"refill": "forks", "min_tokens": 3}, None),
        (best_of_n, {"alpha": 0.1}, "alpha 0.1"),
    ],
)
def test_a_result_says_what_its_algorithm_did_not_use(
    algorithm: Any, given: dict[str, Any], ignored: str | None
) -> None:
    options: dict[str, Any] = {"n": 4, "max_new_tokens": 6, **given}
    opened: dict[str, Any] = {"model": Surveyed(), "reward": FakeReward()}
    result = specrej.generate("Why?", algorithm=algorithm, **opened, **options)
    name = result.settings["algorithm"]
    said = None if ignored is None else f"the algorithm {name!r} does not use {ignored}"
    assert result.note == said


def test_threshold_needs_one() -> None:
    with pytest.raises(UsageError, match="needs a threshold"):
        specrej.Settings(algorithm="threshold")


@pytest.mark.parametrize("algorithm", ["self_certainty", "deepconf", "deepconf_online"])
def test_an_engine_without_log_probabilities_is_refused_before_decoding(algorithm: str) -> None:
    engine = FakeEngine()
    with pytest.raises(SamplingError, match=f"algorithm '{algorithm}' reads top_logprobs"):
        specrej.generate("Why?", engine=engine, reward=FakeReward(), algorithm=algorithm)
    assert engine.num_prefills == 0


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: Any) -> None:
    document = Path(__file__).parents[2] / "docs" / "algorithms.md"
    [(name, code)] = re.findall(
        r"```python\n# (\w+)\.py\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    case = {"seed": 4, "n": 9, "max_new_tokens": 24, "rows": 4, "alpha": 0.5}
    everyone = all_of(case, by_hash)
    expected = elected(everyone, [1 / (1 + len(one.text)) for one in everyone])
    assert run(case, by_hash, algorithm="my_vote:shortest_wins").best.index == expected


def test_the_document_has_every_algorithm() -> None:
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| `\1:", text, re.MULTILINE) == sorted(
        ALGORITHMS, key=text.index
    )


@pytest.mark.parametrize(
    ("rewards", "winner"),
    [
        ([-1.0, -1.0, -1.0], 1),
        ([-0.10, -0.11, -0.11], 1),
        ([-0.10, -5.0, -5.0], 0),
        ([1.0, 1.0, 1.0], 1),
        ([1e308, 1.7e308, 1.7e308], 1),
    ],
)
def test_a_majority_of_equal_rewards_wins_whatever_their_sign(
    rewards: list[float], winner: int
) -> None:
    voters = [
        Candidate(index=place, text=text, state="complete", rewards={0: reward})
        for place, (text, reward) in enumerate(zip(["7", "42", "42"], rewards, strict=True))
    ]
    first, second = count(voters, extractor_of("auto"), by_reward(voters))
    assert first.best is voters[winner]
    assert first.votes >= second.votes


def near_the_largest_float(text: str) -> float:
    return 1.7e308 + len(text)


def test_sums_beyond_the_largest_float_are_json() -> None:
    case = {"seed": 1, "n": 9, "max_new_tokens": 8, "rows": 9, "alpha": 0.5}
    result = run(case, near_the_largest_float, algorithm="weighted_best_of_n")
    votes = json.loads(json.dumps(result.to_dict(), allow_nan=False))["votes"]
    assert max(votes.values()) == sys.float_info.max


def test_only_a_vote_has_a_tally() -> None:
    case = {"seed": 1, "n": 5, "max_new_tokens": 8, "rows": 5, "alpha": 0.5}
    assert run(case, by_hash, algorithm="best_of_n").votes is None
    unanswered = run(case, by_hash, algorithm="majority_vote", extract=lambda text: None)
    assert unanswered.votes == {}
    assert unanswered.best.index == best_of(list(unanswered.candidates))
