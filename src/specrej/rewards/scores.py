"""What a reward gave for a batch, checked: the search does it with every reward, an ensemble with each of its members.

scores = checked_scores("relevance", candidates, session.score(candidates))
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from specrej.errors import RewardError
from specrej.types import Candidate


def checked_scores(name: str, candidates: Sequence[Candidate], scores: Iterable[Any]) -> list[float]:
    """The scores as floats, in the order of the candidates. Minus infinity is one: it rejects the candidate at once.

    Args:
        name: of the reward, for the error.
        candidates: that were scored.
        scores: what the reward gave, of any kind of number.

    Raises:
        RewardError: not one score for each candidate, or NaN or infinity; names the candidate.
        TypeError: `scores` is no sequence, or one is no number.
        ValueError: a text that is no number.
    """
    numbers = [float(score) for score in scores]
    check_count(name, candidates, len(numbers))
    for candidate, number in zip(candidates, numbers, strict=True):
        if math.isnan(number) or number == math.inf:
            raise RewardError(f"the reward {name!r} gave {number} for candidate {candidate.index}")
    return numbers


def check_count(name: str, candidates: Sequence[Candidate], num_scores: int) -> None:
    """See that there is one score for each candidate.

    Raises:
        RewardError: there is not; names the candidate from which on it is wrong.
    """
    if num_scores != len(candidates):
        culprit = candidates[min(num_scores, len(candidates) - 1)].index
        raise RewardError(
            f"the reward {name!r} gave {num_scores} scores for {len(candidates)} candidates; they part ways at "
            f"candidate {culprit}",
            hint="a reward returns one number for each text, in order",
        )
