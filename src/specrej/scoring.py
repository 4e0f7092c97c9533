"""The candidates of several searches before the reward, in one batch where the reward can.

for given, seconds in score_batches(searches):
    ...                                             # scores of one search's batch, or why there are none
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from specrej.rewards.base import Reward, RewardSession, Scores
from specrej.rewards.together import score_together
from specrej.search import Search
from specrej.types import Candidate

Asked = tuple[Reward, RewardSession, Sequence[Candidate]]
"""A search's batch, as it goes to its reward."""

Scored = tuple[Scores, float]
"""What a reward gave for a search's batch, or raised, and the search's share of the seconds it took."""

Scoring = Callable[[Sequence[Search]], Future[list[Scored]]]
"""Scores the batches of searches that decide at the same time; done at once, or later by a thread."""


def score_batches(searches: Sequence[Search]) -> list[Scored]:
    """Score the batches of searches that decide at the same time, whose texts are written."""
    return ask([(search.reward, *search.to_score()) for search in searches])


def ask(batches: Sequence[Asked]) -> list[Scored]:
    """What the rewards say of these batches. Seconds are shared out by numbers of candidates."""
    # Of a search that lost all its candidates there is nothing to ask.
    scored: dict[int, Scored] = {place: ([], 0.0) for place, batch in enumerate(batches) if not batch[2]}
    rewards = {id(reward): reward for reward, _, _ in batches}
    for key, reward in rewards.items():
        places = [place for place, batch in enumerate(batches) if id(batch[0]) == key and batch[2]]
        if not places:
            continue
        begun = time.perf_counter()
        given = score_together(reward, [batches[place][1:] for place in places])
        seconds = time.perf_counter() - begun
        num_candidates = sum(len(batches[place][2]) for place in places)
        for place, scores in zip(places, given, strict=True):
            scored[place] = scores, seconds * len(batches[place][2]) / num_candidates
    return [scored[place] for place in range(len(batches))]


def score_now(searches: Sequence[Search]) -> Future[list[Scored]]:
    """Score here and now."""
    future: Future[list[Scored]] = Future()
    future.set_result(score_batches(searches))
    return future
