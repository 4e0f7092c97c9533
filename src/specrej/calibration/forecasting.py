"""What a partial score says of the reward at the end, learnt from recorded runs.

    forecasts_of(traces, checkpoints)[16]   # a Forecast of answers of 16 tokens

All candidates that are still live at a length count alike, of whatever prompt. By their scores
they are divided into a few bins of equal size. The mean reward at the end of each bin, made to
rise with the score (isotonic regression, pool adjacent violators), and the standard deviation
about it are all that is learnt. So the error depends on length and score: high scores say more
than low ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from specrej.evaluation.trace import Trace
from specrej.search.gains import Forecast

_BINS = 8
_LEAST_IN_A_BIN = 8
_NO_GAP = 1e-9
"""Of all that scores span: bins that are as near are of one score."""


def forecasts_of(traces: Sequence[Trace], checkpoints: Sequence[int]) -> dict[int, Forecast]:
    """By length, where any candidate is live; each is said to go on to its end."""
    found = {}
    for length in checkpoints:
        scores, finals, lengths = _live_at(traces, length)
        if len(scores):
            found[length] = _forecast(length, scores, finals, float((lengths - length).mean()))
    return found


def _live_at(traces: Sequence[Trace], length: int) -> tuple[NDArray[np.float64], ...]:
    """Scores at this length, rewards at the end and lengths of all that were live."""
    rows = []
    for trace in traces:
        is_live = trace.lengths > length
        place = trace.checkpoints.index(length)
        rows.append(
            np.stack([trace.rewards[:, place], trace.final_rewards, trace.lengths])[:, is_live]
        )
    scores, finals, lengths = np.concatenate(rows, axis=1)
    return scores, finals, lengths


def _center(rising: NDArray[np.float64]) -> float:
    """The mean of these scores. Rounding must not put it above equal ones."""
    return float(np.clip(rising.mean(), rising[0], rising[-1]))


def _forecast(
    length: int, scores: NDArray[np.float64], finals: NDArray[np.float64], num_left: float
) -> Forecast:
    order = np.argsort(scores, kind="stable")
    num_bins = min(_BINS, max(len(order) // _LEAST_IN_A_BIN, 1))
    # Bins of one score, where many scores are equal, are one.
    nothing = _NO_GAP * float(np.ptp(scores))
    bins: list[NDArray[np.intp]] = []
    for places in np.array_split(order, num_bins):
        bins.append(places)
        while len(bins) > 1 and _center(scores[bins[-1]]) - _center(scores[bins[-2]]) <= nothing:
            last = bins.pop()
            bins[-1] = np.concatenate([bins[-1], last])
    means = [finals[places].mean() for places in bins]
    risen = isotonic_regression(means, weights=[len(places) for places in bins]).x
    centers = [_center(scores[places]) for places in bins]
    about = (finals - np.interp(scores, centers, risen)) ** 2
    errors = [np.sqrt(about[places].mean()) for places in bins]
    return Forecast(
        num_tokens=length,
        scores=tuple(map(float, centers)),
        finals=tuple(map(float, risen)),
        errors=tuple(map(float, errors)),
        num_left=num_left,
    )
