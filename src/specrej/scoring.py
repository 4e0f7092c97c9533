"""The candidates of several searches before the reward, in one batch where the reward can.

for given, seconds in score_batches(searches):
    ...                                             # scores of one search's batch, or why there are none
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from specrej.rewards.together import score_together
from specrej.search import Search

Scored = tuple[Sequence[float] | Exception, float]
"""What a reward gave for a search's batch, or raised, and the search's share of the seconds it took."""

Scoring = Callable[[Sequence[Search]], Future[list[Scored]]]
"""Scores the batches of searches that decide at the same time; done at once, or later by a thread."""


def score_batches(searches: Sequence[Search]) -> list[Scored]:
    """Score the batches of searches that decide at the same time. Seconds are shared out by numbers of candidates."""
    scored: dict[int, Scored] = {}
    rewards = {id(search.reward): search.reward for search in searches}
    for key, reward in rewards.items():
        places = [place for place, search in enumerate(searches) if id(search.reward) == key]
        asked = [searches[place].to_score() for place in places]
        begun = time.perf_counter()
        given = score_together(reward, asked)
        seconds = (time.perf_counter() - begun) / sum(len(candidates) for _, candidates in asked)
        for place, (_, candidates), scores in zip(places, asked, given, strict=True):
            scored[place] = scores, seconds * len(candidates)
    return [scored[place] for place in range(len(searches))]


def score_now(searches: Sequence[Search]) -> Future[list[Scored]]:
    """Score here and now."""
    future: Future[list[Scored]] = Future()
    future.set_result(score_batches(searches))
    return future
