"""What a reward gave for a batch, checked: the search does it with every reward, an ensemble with
each of its members.

with failing_as("the reward 'relevance' failed on candidates 0 to 3"):
    scores = checked_scores("relevance", candidates, session.score(candidates))
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specrej.errors import RewardError, SpecrejError, is_ctrl_c, named
from specrej.types import Candidate


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Whatever a reward raises in this block is a RewardError, also the SystemExit of one that ends
    programs.

    Args:
        what: failed, in the words that the error begins with.

    Raises:
        SpecrejError: as it was raised.
        RewardError: of anything else but Ctrl-C.
    """
    try:
        yield
    except SpecrejError:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise RewardError(f"{what}: {named(error)}") from error


def checked_scores(
    name: str, candidates: Sequence[Candidate], scores: Iterable[Any]
) -> list[float]:
    """The scores as floats, in the order of the candidates. Minus infinity is one: it rejects the
    candidate at once.

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
            f"the reward {name!r} gave {num_scores} scores for {len(candidates)} candidates; they "
            "part ways at "
            f"candidate {culprit}",
            hint="a reward returns one number for each text, in order",
        )
