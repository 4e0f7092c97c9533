"""The candidates of several searches before the reward, in one batch where the reward can.

for given, seconds in score_batches(searches):
    ...  # scores of one search's batch, or why there are none
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from specrej.rewards.base import Scores
from specrej.rewards.together import score_together
from specrej.search.rewarding import ToScore
from specrej.search.search import Search

Given = tuple[Scores, float]
"""What a reward gave for a search's batch, or raised, and the search's share of the seconds it
took."""

Scorer = Callable[[Sequence[Search]], Future[list[Given]]]
"""Scores the batches of searches that decide at the same time; done at once, or later by a
thread."""


def score_batches(searches: Sequence[Search]) -> list[Given]:
    """Score the batches of searches that decide at the same time, whose texts are written."""
    return ask([search.to_score() for search in searches])


def ask(batches: Sequence[ToScore]) -> list[Given]:
    """What the rewards say of these batches. Seconds are shared out by numbers of candidates."""
    # Of a search that lost all its candidates there is nothing to ask.
    scored: dict[int, Given] = {
        place: ([], 0.0) for place, batch in enumerate(batches) if not batch.candidates
    }
    rewards = {id(batch.reward): batch.reward for batch in batches}
    for reward in rewards.values():
        places = [
            place
            for place, batch in enumerate(batches)
            if batch.reward is reward and batch.candidates
        ]
        if not places:
            continue
        begun = time.perf_counter()
        given = score_together(
            reward, [(batches[place].session, batches[place].candidates) for place in places]
        )
        seconds = time.perf_counter() - begun
        num_candidates = sum(len(batches[place].candidates) for place in places)
        for place, scores in zip(places, given, strict=True):
            scored[place] = scores, seconds * len(batches[place].candidates) / num_candidates
    return [scored[place] for place in range(len(batches))]


def score_now(searches: Sequence[Search]) -> Future[list[Given]]:
    """Score here and now."""
    future: Future[list[Given]] = Future()
    future.set_result(score_batches(searches))
    return future
