"""Compute by compute: of one method relative to another, and of Best-of-N at a method's score.

    # {"outcome": "reached", "value": 2.7, ...}
    speedup(comparison, "speculative_rejection:0.5", "reward", "tokens")

Definitions: Sun et al. (NeurIPS 2024, arXiv 2410.20290). Compute is summed over prompts, of which
both methods came to the end; see `comparison` for what becomes of failures.
"""

from collections.abc import Callable
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.comparison import Comparison, Compute, compute, improvements, rewards
from specrej.evaluation.intervals import Array, Estimate, ends_of, estimate, value_of

Score = Literal["reward", "improvement"]

NOISE = 1e-6
"""Mean scores that differ by no more, or by no greater share, are equal."""


class Speedup(TypedDict):
    """How many times the method's compute Best-of-N needs for the method's score."""

    outcome: Literal["reached", "not_reached", "below"]
    """not_reached: the score is above all points of Best-of-N; below: under the cheapest of
    them."""
    value: float
    """The speedup; where it is not reached a lower bound, by the dearest point; below an upper
    one, by the cheapest."""
    low: float | None
    high: float | None
    """95% interval; None where an end lies beyond the points of Best-of-N, or with a single
    prompt."""


def relative_compute(comparison: Comparison, method: str, measure: Compute, to: str) -> Estimate:
    """Sum of the method's compute by the sum of another's, over the prompts that both came to
    the end of.
    """
    ratio = sum_ratio(compute(comparison, method, measure), compute(comparison, to, measure))
    return estimate(ratio, len(comparison.prompt_ids))


def speedup(comparison: Comparison, method: str, score: Score, measure: Compute) -> Speedup | None:
    """The compute that Best-of-N needs for the method's mean score, by the method's own.

    Between the `best_of_n` methods of the run the score is taken as linear in the log of compute;
    where it falls and rises again, the least compute that reaches it counts. Nothing is
    extrapolated. Compute is relative to the baseline's, so that failures leave it comparable.

    Returns:
        None where the run has no Best-of-N, no prompt carries the score, or the compute is not
        known.
    """
    of_prompt = {"reward": rewards, "improvement": improvements}[score]
    scores = {name: of_prompt(comparison, name) for name in comparison.rows}
    kept = np.flatnonzero(~np.isnan(scores[comparison.baseline]))
    base = compute(comparison, comparison.baseline, measure)
    ratios = {
        name: sum_ratio(compute(comparison, name, measure)[kept], base[kept])
        for name in comparison.rows
    }
    points = [
        name
        for name in best_of_n_methods(comparison)
        if value_of(ratios[name], len(kept)) is not None
    ]
    if not points or value_of(ratios[method], len(kept)) is None:
        return None

    def quotients(drawn: NDArray[np.intp]) -> Array:
        """Compute of each point by the method's, `[points, resamples]`."""
        return np.stack([ratios[name](drawn) for name in points]) / ratios[method](drawn)

    def statistic(drawn: NDArray[np.intp]) -> Array:
        at_points = np.stack([scores[name][kept][drawn].mean(-1) for name in points])
        return needed_compute(quotients(drawn), at_points, scores[method][kept][drawn].mean(-1))

    whole = quotients(np.arange(len(kept))[None])
    value = float(statistic(np.arange(len(kept))[None])[0])
    low, high = (end if end and np.isfinite(end) else None for end in ends_of(statistic, len(kept)))
    if value == 0:
        return {"outcome": "below", "value": float(whole.min()), "low": low, "high": high}
    if np.isinf(value):
        return {"outcome": "not_reached", "value": float(whole.max()), "low": low, "high": high}
    return {"outcome": "reached", "value": value, "low": low, "high": high}


def needed_compute(points: Array, scores: Array, target: Array) -> Array:
    """The least compute at which the curve through the points reaches a score.

    Args:
        points: compute of each point, above 0, `[points, resamples]`.
        scores: of each point.
        target: the score to reach, `[resamples]`.

    Returns:
        `[resamples]`: 0 where the cheapest point is above the target already, infinity where no
        point reaches it.
    """
    order = np.argsort(points, axis=0, kind="stable")
    points, scores = np.take_along_axis(points, order, 0), np.take_along_axis(scores, order, 0)
    for score in scores:  # the same answers in other batches: their rewards' last digits differ
        target = np.where(np.isclose(target, score, rtol=NOISE, atol=NOISE), score, target)
    needed = np.full(target.shape, np.inf)
    for left in reversed(range(len(points) - 1)):
        rise = scores[left + 1] - scores[left]
        # Beyond the two points the share is not used, and over a rise that is only rounding it
        # would overflow.
        share = np.divide(target - scores[left], rise, out=np.ones_like(rise), where=rise > 0).clip(
            0, 1
        )
        reached = np.exp((1 - share) * np.log(points[left]) + share * np.log(points[left + 1]))
        needed = np.where((scores[left] < target) & (target <= scores[left + 1]), reached, needed)
    needed = np.where(target == scores[0], points[0], needed)
    return np.where(target < scores[0], 0.0, needed)


def sum_ratio(costs: Array, others: Array) -> Callable[[NDArray[np.intp]], Array]:
    """The statistic sum / sum over prompts that have both; NaN where none was drawn."""
    both = ~np.isnan(costs) & ~np.isnan(others)
    costs, others = np.where(both, costs, 0.0), np.where(both, others, 0.0)

    def statistic(drawn: NDArray[np.intp]) -> Array:
        total = others[drawn].sum(-1)
        ratios: Array = np.divide(
            costs[drawn].sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0
        )
        return ratios

    return statistic


def largest_best_of_n(comparison: Comparison) -> str | None:
    """The `best_of_n` method that drew most tokens; None where there is none."""
    drawn = {
        method: np.nansum(compute(comparison, method, "tokens"))
        for method in best_of_n_methods(comparison)
    }
    return max(drawn, key=drawn.__getitem__, default=None)


def best_of_n_methods(comparison: Comparison) -> list[str]:
    """The methods that are Best-of-N."""
    return [method for method in comparison.rows if method.partition(":")[0] == "best_of_n"]
