"""Candidates that vote: who gives the same answer, and which answer weighs most.

return vote(search, finished(search.candidates), extractor_of("auto"), lambda candidate: 1.0)

What an algorithm returns is the answer of its search, in place of the candidate of highest reward.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from specrej.rewards.answers import Extract, form_of, same_answer
from specrej.search.choosing import rank
from specrej.search.view import SearchView
from specrej.types import Candidate

Weight = Callable[[Candidate], float]
"""What a candidate's vote counts, at least 0."""


def finished(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that can win: complete, and not rejected."""
    return [candidate for candidate in candidates if candidate.state == "complete"]


class Counted(NamedTuple):
    """One answer, as it was first given, what its votes sum to, and its best candidate."""

    answer: str
    votes: float
    best: Candidate


def vote(
    search: SearchView, candidates: Sequence[Candidate], extract: Extract, weight: Weight
) -> Candidate | None:
    """The best candidate of the answer whose votes sum to most, see `count`. The result of the
    search gets the sums of all answers.

    None where nobody votes: then the reward chooses.
    """
    counted = count(candidates, extract, weight)
    search.votes = {one.answer: min(one.votes, sys.float_info.max) for one in counted}
    return counted[0].best if counted else None


def count(candidates: Sequence[Candidate], extract: Extract, weight: Weight) -> list[Counted]:
    """All answers, the one whose votes sum to most first; of equal sums, the one whose best
    candidate is better. Candidates without an answer do not vote.
    """
    counted = [
        Counted(answer, _sum(group, weight), _best(group))
        for answer, group in alike(candidates, extract).items()
    ]
    return sorted(counted, key=lambda one: (-one.votes, *rank(one.best.reward, one.best.index)))


def consensus(candidates: Sequence[Candidate], extract: Extract, weight: Weight) -> float:
    """The share of all votes that the leading answer has; 0 where nobody votes."""
    sums = [one.votes for one in count(candidates, extract, weight)]
    return max(sums) / math.fsum(sums) if any(sums) else 0.0


def alike(candidates: Sequence[Candidate], extract: Extract) -> dict[str, list[Candidate]]:
    """The candidates by their answers, in order of appearance; see `same_answer`."""
    by_form: dict[str | Decimal, list[Candidate]] = {}
    answers: dict[str | Decimal, str] = {}
    for candidate in candidates:
        if (answer := extract(candidate.text)) is not None:
            form = form_of(answer)
            by_form.setdefault(form, []).append(candidate)
            answers.setdefault(form, answer)
    groups: dict[str, list[Candidate]] = {}
    for form, members in by_form.items():
        equal = next((one for one in groups if same_answer(one, answers[form])), answers[form])
        groups.setdefault(equal, []).extend(members)
    return groups


def by_reward(candidates: Sequence[Candidate]) -> Weight:
    """A candidate's reward; where some are below 0, the exponential of how far it is from the
    highest of all: equal rewards are a majority vote then.
    """
    rewards = [one.reward for one in candidates if one.reward is not None]
    if not rewards or min(rewards) >= 0:
        return lambda candidate: candidate.reward or 0.0
    highest = max(rewards)
    return lambda candidate: (
        0.0 if candidate.reward is None else math.exp(candidate.reward - highest)
    )


def borda(candidates: Sequence[Candidate], score: Weight, power: float) -> Weight:
    """Votes by places: with n candidates the first has n^power, the last 1."""
    order = sorted(candidates, key=lambda candidate: (-score(candidate), candidate.index))
    votes = {one.index: float((len(order) - place) ** power) for place, one in enumerate(order)}
    return lambda candidate: votes[candidate.index]


def _sum(group: Sequence[Candidate], weight: Weight) -> float:
    try:
        return math.fsum(weight(candidate) for candidate in group)
    except OverflowError:  # of rewards that are near the largest float
        return math.inf


def _best(group: Sequence[Candidate]) -> Candidate:
    return min(group, key=lambda candidate: rank(candidate.reward, candidate.index))
