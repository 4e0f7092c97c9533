"""What compares answers in pairs, and how comparisons within a group become a score for each.

    game = round_robin(3)      # yields [(0, 1), (0, 2), (1, 2)]
    # sent [0.9, 0.6, 0.5], it returns [0.75, 0.3, 0.45]

A game is a generator over places 0 to k - 1. It yields the pairs that it wants compared, and is
sent the probability, for each, that the first of the two is better. It returns the scores. Who has
a higher one won more; what was compared with other answers has other scores.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

from specrej.types import Candidate, Message


class Pair(NamedTuple):
    """Two answers to a prompt, in the order in which they are shown."""

    messages: Sequence[Message]
    first: Candidate
    second: Candidate


class Comparer(Protocol):
    """What compares pairs of answers."""

    name: str
    """What follows `pairwise:`."""
    flops_per_token: float | None
    """See `specrej.rewards.base.Reward`."""

    def compare(self, pairs: Sequence[Pair]) -> tuple[Sequence[float], Sequence[int]]:
        """The probability that the first is better, and the tokens read, of each pair."""

    def close(self) -> None:
        """Free what it holds. May be called twice."""


Game = Generator[list[tuple[int, int]], list[float], list[float]]

ALONE = 0.5
"""The share of its comparisons that an answer wins which has nobody to be compared with."""


def round_robin(num: int) -> Game:
    """Everyone against everyone, k (k - 1) / 2 pairs: the mean probability of being better than
    another, from 0 to 1.
    """
    if num < 2:
        return [ALONE] * num
    pairs = list(combinations(range(num), 2))
    totals = [0.0] * num
    for (one, other), probability in zip(pairs, (yield pairs), strict=True):
        totals[one] += probability
        totals[other] += 1 - probability
    return [total / (num - 1) for total in totals]


def knockout(num: int) -> Game:
    """Neighbours against each other, round by round, k - 1 pairs: the number of rounds that an
    answer came through.

    Of an even pair the first goes on. Where a round has an odd number, the last goes on without a
    comparison, and stands first in the next round.
    """
    rounds, left = [0.0] * num, list(range(num))
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        probabilities = yield pairs
        going_on = [left[-1]] if len(left) % 2 else []
        for (one, other), probability in zip(pairs, probabilities, strict=True):
            going_on.append(one if probability >= 0.5 else other)
        left = going_on
        for place in left:
            rounds[place] += 1
    return rounds


SCHEMES: dict[str, Callable[[int], Game]] = {"round_robin": round_robin, "knockout": knockout}
"""What a spec names."""
