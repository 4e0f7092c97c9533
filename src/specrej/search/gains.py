"""Keep whoever is expected to add more than the tokens are worth.

    forecast = Forecast(num_tokens=16, scores=(-8.0, 0.0), finals=(-3.0, 4.0), errors=(4.0, 2.0),
                        num_left=48)
    rule = worth([forecast], price=0.001)   # for `Policy(keep=rule, ...)`

A forecast says what reward a candidate will end with, given the score of its partial answer: a
mean and a standard deviation, learnt from recorded runs. Candidates are taken from the best
forecast down. What one adds is how much it raises the expected maximum of those before it. It
stays while that is more than the price of the tokens to the next decision. So a field of close
scores keeps many, a plain leader goes on alone, and once a complete answer is beyond the reach of
all others the run ends.

The expected maximum of normal variables is that of Clark (1961, "The greatest of a finite set of
random variables"): after each one the maximum so far counts as normal again.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from specrej.search.choosing import rank
from specrej.types import Rule, Standing

_FAR = 40.0
"""Standard deviations: beyond them the lower of two adds nothing that a float holds."""


class Forecast(NamedTuple):
    """Of the final reward, from the score of a partial answer.

    Between two scores it is linear; above the last it follows the slope there, below the first
    it stays what it is there.
    """

    num_tokens: int
    """Length of the partial answers."""
    scores: tuple[float, ...]
    """Rising."""
    finals: tuple[float, ...]
    """Mean reward at the end, of candidates with these scores."""
    errors: tuple[float, ...]
    """Standard deviation about that mean."""
    num_left: float
    """Tokens that a candidate generates until the next decision."""

    def of(self, score: float) -> tuple[float, float]:
        """Mean and standard deviation of the final reward."""
        place = bisect_right(self.scores, score)
        if place == 0:
            return self.finals[0], self.errors[0]
        if place == len(self.scores):
            return self.finals[-1] + self._last_slope * (score - self.scores[-1]), self.errors[-1]
        low, high = self.scores[place - 1], self.scores[place]
        share = (score - low) / (high - low)
        return (
            self.finals[place - 1] * (1 - share) + self.finals[place] * share,
            self.errors[place - 1] * (1 - share) + self.errors[place] * share,
        )

    @property
    def _last_slope(self) -> float:
        if len(self.scores) < 2:
            return 0.0
        return (self.finals[-1] - self.finals[-2]) / (self.scores[-1] - self.scores[-2])


def worth(forecasts: Sequence[Forecast], price: float) -> Rule:
    """The rule: a live candidate stays if it, or one of a worse forecast, adds more than it costs.

    Where memory forces a decision at another length, the forecast before it serves.

    Args:
        forecasts: by rising length.
        price: of a token, in spreads: standard deviations of what the live candidates may end
            with.
    """
    lengths = [forecast.num_tokens for forecast in forecasts]

    def keep(standing: Standing) -> list[bool]:
        forecast = forecasts[max(bisect_right(lengths, standing.num_tokens) - 1, 0)]
        given = list(zip(standing.scores, standing.is_live, strict=True))
        ends = [forecast.of(score) if is_live else (score, 0.0) for score, is_live in given]
        live = [end for end, (_, is_live) in zip(ends, given, strict=True) if is_live]
        order = sorted(
            range(len(ends)),
            key=lambda place: (-ends[place][0], rank(standing.scores[place], place)),
        )
        gains = _gains([ends[place] for place in order], standing.best)
        least = price * forecast.num_left * _spread(live)
        # Until one is complete somebody has to go on, whatever it costs.
        fewest = int(standing.best is None and len(live) == len(ends))
        num_kept = max((at + 1 for at, gain in enumerate(gains) if gain > least), default=fewest)
        kept = set(order[:num_kept])
        return [place in kept or not is_live for place, is_live in enumerate(standing.is_live)]

    return keep


def _spread(ends: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of a draw from one of these at random."""
    if not ends:
        return 0.0
    center = sum(mean for mean, _ in ends) / len(ends)
    about = [mean - center for mean, _ in ends] + [error for _, error in ends]
    return math.hypot(*about) / math.sqrt(len(ends))


def _gains(ends: Sequence[tuple[float, float]], best: float | None) -> list[float]:
    """What each adds to the expected maximum of those before it and of the best complete one."""
    mean, variance = (-math.inf, 0.0) if best is None else (best, 0.0)
    gains = []
    for other, error in ends:
        risen, variance = _greater(mean, variance, other, error * error)
        gains.append(risen - mean)
        mean = risen
    return gains


def _greater(mean: float, variance: float, other: float, of_other: float) -> tuple[float, float]:
    """Mean and variance of the greater of two independent normal variables (Clark 1961, eq. 2
    to 6).
    """
    spread = math.sqrt(variance + of_other)
    if mean == -math.inf:
        return other, of_other
    if spread == 0:
        return max(mean, other), 0.0
    distance = (mean - other) / spread
    if abs(distance) > _FAR:
        return (mean, variance) if distance > 0 else (other, of_other)
    first = 0.5 * (1 + math.erf(distance / math.sqrt(2)))
    density = math.exp(-0.5 * distance * distance) / math.sqrt(2 * math.pi)
    # Relative to the greater mean and in units of the spread, so that large rewards neither cancel
    # nor overflow.
    base = max(mean, other)
    mean, other = (mean - base) / spread, (other - base) / spread
    variance, of_other = variance / spread / spread, of_other / spread / spread
    greater = mean * first + other * (1 - first) + density
    square = (
        (mean * mean + variance) * first
        + (other * other + of_other) * (1 - first)
        + (mean + other) * density
    )
    return base + greater * spread, max(square - greater * greater, 0.0) * spread * spread
