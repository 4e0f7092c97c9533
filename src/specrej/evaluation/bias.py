"""What a judge leans to beside the answers: a place, and a length.

    found = judge_bias([Leaning(won=1.0, is_first=True, more_characters=120), ...])
    found["win_first"], found["win_second"], found["length_correlation"]

Wins that are rarer where the method is shown second say that the judge prefers the first place; a
correlation above 0 that the longer answer wins, which may be the better one all the same.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.intervals import Array, Estimate, estimate, mean_of


class Leaning(NamedTuple):
    """One request to a judge of pairs."""

    won: float
    """1 for the method, 0 for the other answer, 0.5 for a tie, and all between."""
    is_first: bool
    """Whether the method's answer was shown first."""
    more_characters: int
    """Of the method's answer than of the other one."""


class JudgeBias(TypedDict):
    """Over the pairs that the judge was asked about."""

    win_first: Estimate
    """Mean of `won` where the method was shown first."""
    win_second: Estimate
    length_correlation: Estimate
    """Pearson's, of `won` with `more_characters`; no value where either never varies."""
    num_asked: int


def judge_bias(asked: Sequence[Leaning]) -> JudgeBias:
    """Win rates by place, and the correlation of winning with length."""
    won = np.array([one.won for one in asked], dtype=np.float64)
    first = np.array([one.is_first for one in asked], dtype=bool)
    more = np.array([one.more_characters for one in asked], dtype=np.float64)
    return {
        "win_first": mean_of(won[first]),
        "win_second": mean_of(won[~first]),
        "length_correlation": estimate(lambda drawn: _pearson(won, more, drawn), len(won)),
        "num_asked": len(won),
    }


def _pearson(one: Array, other: Array, drawn: NDArray[np.intp]) -> Array:
    """The correlation within each resample; NaN where there is none."""
    x, y = (values[drawn] - values[drawn].mean(-1, keepdims=True) for values in (one, other))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    found: Array = np.divide(
        (x * y).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0
    )
    return found
