"""Several rewards' scores of one candidate made into one, as small functions; and scores brought to
one scale.

    combine = combiner("cvar", weights=[1.0, 1.0, 2.0], share=0.5)
    combine([0.3, -1.2, 0.9])

    scale = Scale()
    scale.fit([2.0, 4.0])
    scale.apply(5.0)              # 2.0: two standard deviations above the mean

Worst-of and mean minus spread are the conservative objectives of Coste et al. (Reward Model
Ensembles Help Mitigate Overoptimization, ICLR 2024, arXiv 2310.02743), with the standard deviation
in place of the variance, so that the score keeps its unit. CVaR is that of Rockafellar and Uryasev
(Optimization of Conditional Value-at-Risk, 2000), over members.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from specrej.errors import UnknownNameError, UsageError

Combiner = Callable[[Sequence[float]], float]
"""From the members' scores of one candidate, in the order of the members: its score."""

COMBINERS = ("sum", "mean_minus_std", "worst", "cvar")
_NOISE = 1e-6


def combiner(
    combine: str, weights: Sequence[float], *, risk: float | None = None, share: float | None = None
) -> Combiner:
    """The function that a name stands for.

    Args:
        combine: "sum" (weighted), "mean_minus_std", "worst" (the lowest) or "cvar". In the mean and
            in CVaR a member counts by its share of all weights.
        weights: one for each member.
        risk: standard deviations that "mean_minus_std" takes off; None is 1.
        share: of the members, by weight, whose worst scores "cvar" averages, in (0, 1]; None is
            0.5.

    Raises:
        UnknownNameError: there is no such `combine`.
        UsageError: a number outside its range, or one that this `combine` does not use.
    """
    _check(combine, weights, risk, share)
    if combine == "mean_minus_std":
        return partial(
            mean_minus_std,
            weights=weights,
            risk=_in_range("risk", 1.0 if risk is None else risk, math.inf),
        )
    if combine == "cvar":
        return partial(
            cvar, weights=weights, share=_in_range("share", 0.5 if share is None else share, 1.0)
        )
    return min if combine == "worst" else partial(weighted_sum, weights=weights)


def _check(combine: str, weights: Sequence[float], risk: float | None, share: float | None) -> None:
    """See that there is such a way to combine, and that it uses what is given."""
    if combine not in COMBINERS:
        raise UnknownNameError("combine of an ensemble", combine, COMBINERS)
    if risk is not None and combine != "mean_minus_std":
        raise UsageError(f"risk goes with combine='mean_minus_std', not with {combine!r}")
    if share is not None and combine != "cvar":
        raise UsageError(f"share goes with combine='cvar', not with {combine!r}")
    if combine == "worst" and any(weight != 1 for weight in weights):
        raise UsageError(
            "combine='worst' takes the lowest score, whatever the weights",
            hint="leave out the weights",
        )
    if combine in ("mean_minus_std", "cvar") and min(weights) <= 0:
        raise UsageError(f"with combine={combine!r} weights must be above 0, got {min(weights)}")


def _in_range(name: str, value: float, most: float) -> float:
    if not 0 < value <= most or math.isinf(value):
        raise UsageError(
            f"{name} must be above 0"
            + (f" and at most {most:g}" * (most < math.inf))
            + f", got {value}"
        )
    return value


def weighted_sum(scores: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))


def mean_minus_std(scores: Sequence[float], weights: Sequence[float], risk: float) -> float:
    """Weighted mean of the scores less `risk` times their weighted standard deviation (of a
    population).
    """
    total = math.fsum(weights)
    mean = weighted_sum(scores, weights) / total
    variance = weighted_sum([(score - mean) ** 2 for score in scores], weights) / total
    return mean - risk * math.sqrt(variance)


def cvar(scores: Sequence[float], weights: Sequence[float], share: float) -> float:
    """Mean of the worst scores that make up a `share` of the weights; the last of them counts in
    part.
    """
    whole = left = share * math.fsum(weights)
    parts = []
    for score, weight in sorted(zip(scores, weights, strict=True)):
        parts.append(score * min(weight, left))
        left -= min(weight, left)
    return math.fsum(parts) / whole


@dataclass(slots=True)
class Scale:
    """One member's scores in standard deviations from their mean, on a scale that stays once it is
    found.

    The center is the mean of the scores first seen, the spread their standard deviation. While they
    are all alike there
    is no spread, and each is 0: the center itself. The first that differ give the spread then; what
    was 0 before is 0 on that scale too. So all scores that were ever given can be compared.
    """

    center: float | None = None
    spread: float = 0.0

    def fit(self, scores: Sequence[float]) -> None:
        """Find what is not there yet of center and spread, from the latest scores of all
        candidates so far.
        """
        if self.center is None:
            self.center = statistics.mean(scores)
        if not self.spread:
            spread = statistics.pstdev(scores)
            # What a model's rounding makes of equal scores is no spread.
            self.spread = spread if spread > _NOISE * max(map(abs, scores)) else 0.0

    def apply(self, score: float) -> float:
        assert self.center is not None
        return (score - self.center) / self.spread if self.spread else 0.0
