"""When to decide, and whom to keep: what Speculative Rejection leaves open, as small functions.

A decision always comes when the next step would not fit in the budget and when no candidate is
live; a schedule adds moments to these. The rule then says who of the scored candidates stays.

    Policy(when=at((16, 32, 64)), keep=top(4), first_tokens=16)
"""

import math
from collections.abc import Sequence

from specrej.search.choosing import rank
from specrej.types import Rule, Schedule, Standing


def never(_length: int, _last: int) -> bool:
    """Decide only when memory or the last candidate's end asks for it."""
    return False


def every(num_tokens: int) -> Schedule:
    """Decide after each so many tokens."""
    return lambda length, last: length - last >= num_tokens


def at(lengths: Sequence[int]) -> Schedule:
    """Decide at these lengths, in tokens."""
    return lambda length, last: length > last and length in lengths


def everyone(standing: Standing) -> list[bool]:
    """Keep all: the rule of Best-of-N."""
    return [True] * len(standing.scores)


def fraction(alpha: float) -> Rule:
    """Keep the candidates at or above the alpha-quantile of the scores (Algorithm 1 of arXiv
    2410.20290).

    Scores equal to the cut stay, unless fewer than a share alpha would go: then those with higher
    indices go, so that a reward with few values still rejects.
    """

    def keep(standing: Standing) -> list[bool]:
        scores = standing.scores
        if not scores:  # all were filtered
            return []
        cut = quantile(scores, alpha)
        num_rejected = max(sum(score < cut for score in scores), math.floor(alpha * len(scores)))
        # The cut between scores at both ends of the floats is infinite; the best stays all the
        # same.
        return _best(scores, max(len(scores) - num_rejected, 1))

    return keep


def quantile(scores: Sequence[float], alpha: float) -> float:
    """The alpha-quantile of the scores, linear between neighbours (the common definition,
    numpy's default).
    """
    ordered = sorted(scores)
    below = math.floor(alpha * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    share = alpha * (len(ordered) - 1) - below
    return ordered[below] + (ordered[above] - ordered[below]) * share


def top(k: int) -> Rule:
    """Keep the k best; of equals, those with lower indices."""
    return lambda standing: _best(standing.scores, k)


def _best(scores: Sequence[float], k: int) -> list[bool]:
    order = sorted(range(len(scores)), key=lambda position: rank(scores[position], position))
    chosen = set(order[:k])
    return [position in chosen for position in range(len(scores))]
