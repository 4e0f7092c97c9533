"""Whether raters agree: Krippendorff's alpha, and the items on which they agree least.

    alpha_of([[[7, 8], [3, 3, 4]], [[1, 2]]])            # by prompt, by item; one number a rater

Alpha is that of the interval metric (Krippendorff, "Computing Krippendorff's Alpha-Reliability",
2011): 1 - observed / expected disagreement, both mean squared differences. Observed is within
items, expected among all ratings. Raters may have left items out. An item with fewer than two
ratings says nothing of agreement, and is not used. 1 is perfect agreement, 0 that of chance.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.intervals import Array, Estimate, estimate

SHARE = 5
"""The high-disagreement items are one in so many."""


def alpha_of(prompts: Sequence[Sequence[Sequence[int]]]) -> Estimate:
    """Krippendorff's alpha of the interval metric, with its 95% bootstrap interval over prompts.

    The value is None where no item has two ratings, or all ratings of such items are equal.

    Args:
        prompts: ratings by prompt, then by item, one number for each rater of the item.
    """
    sums = [_sums(items) for items in prompts]
    table = np.array([row for row in sums if row[1]], dtype=np.float64).reshape(-1, 4)

    def alpha(drawn: NDArray[np.intp]) -> Array:
        within, count, total, squares = table[drawn].sum(-2).T
        spread = count * squares - total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, 1 - (count - 1) * within / spread, np.nan)

    return estimate(alpha, len(table))


def _sums(items: Sequence[Sequence[int]]) -> tuple[float, int, int, int]:
    """What a prompt adds to both disagreements.

    The sum over its items of squared differences over pairs, by ratings less one; then number,
    sum and sum of squares of its ratings. All from items with two ratings or more.
    """
    pairable = [scores for scores in items if len(scores) > 1]
    every = [score for scores in pairable for score in scores]
    within = float(sum(len(scores) * variance(scores) for scores in pairable))
    return within, len(every), sum(every), sum(score**2 for score in every)


def variance(scores: Sequence[int]) -> Fraction:
    """The sample variance of two ratings or more, exactly: equal disagreements must compare as
    equal.
    """
    count, total = len(scores), sum(scores)
    return Fraction(count * sum(score**2 for score in scores) - total**2, count * (count - 1))


def most_disputed(items: Mapping[str, Sequence[int]]) -> list[str]:
    """The fifth of items whose raters differ most, the most disputed first.

    Of the items with two ratings or more, one in five (rounded down, at least one) with the largest
    sample variance. Among equal ones the name decides. An item on which all agree is never one.

    Args:
        items: the ratings of each, by name.
    """
    found = {name: variance(scores) for name, scores in items.items() if len(scores) > 1}
    widest = sorted(found, key=lambda name: (-found[name], name))[: max(1, len(found) // SHARE)]
    return [name for name in widest if found[name] > 0]
